"""Token classification: a label for every word, predicted at the word's first token."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.config import DataConfig, RunConfig
from kvik_train.data.embedded import PYTHON_TAGS, python_tags
from kvik_train.data.framing import IGNORED, length_mask, pad_rows
from kvik_train.data.prepare import tokenizer_path
from kvik_train.data.records import Row
from kvik_train.data.table import Ragged, Table
from kvik_train.distributed import World
from kvik_train.errors import TrainError
from kvik_train.evaluation.scores import Score
from kvik_train.objective import Batch, ExampleObjective
from kvik_train.tasks.base import ExampleTask, Prepared
from kvik_train.tokenizer import load_tokenizer

Tagged = tuple[list[str], list[str]]  # words, and the tag of each


class Tagging(ExampleObjective):
    def __init__(
        self, tables: Mapping[str, Table], config: RunConfig, pad: int, world: World
    ) -> None:
        super().__init__(tables, config.train, world)
        self._pad = pad

    def collate(
        self, split: str, rows: Sequence[int], drawn: tuple[int, slice] | None = None
    ) -> Batch:
        """Inputs ids, mask and segments [B, S]; targets labels [B, S], IGNORED where none is."""
        table = self.tables[split]
        texts = [table["text"][row] for row in rows]
        ids = pad_rows(texts, self._pad)
        labels = pad_rows([table["label"][row] for row in rows], IGNORED)
        return Batch((ids, length_mask(texts), torch.zeros_like(ids)), (labels,))

    def weight(self, batch: Batch, rows: int) -> float:
        return float((batch.targets[0] != IGNORED).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(*batch.inputs)
        return F.cross_entropy(logits.float().flatten(0, 1), batch.targets[0].flatten())


class Tag(ExampleTask[Tagged]):
    name = "tag"
    use = "tag"
    sources = (PYTHON_TAGS,)
    columns = ("words", "tags")
    unit = "texts"

    def named(self, data: DataConfig) -> tuple[list[Tagged], list[Tagged] | None]:
        return python_tags(), None

    def parse(self, row: Row, known: Sequence[str]) -> Tagged:
        words, tags = row.texts("words"), row.texts("tags")
        if len(words) != len(tags):
            raise TrainError(
                f"{row.where('tags')}: found {len(tags)} tags for {len(words)} words; "
                "every word needs one"
            )
        return words, [row.known_label("tags", tag, known) for tag in tags]

    def texts(self, examples: Sequence[Tagged]) -> Iterable[str]:
        return (" ".join(words) for words, _ in examples)

    def labels_of(self, examples: Sequence[Tagged]) -> set[str]:
        return {tag for _, tags in examples for tag in tags}

    def encode(
        self,
        examples: Sequence[Tagged],
        tokenizer: Tokenizer,
        labels: Sequence[str],
        config: RunConfig,
    ) -> Table:
        frame, limit = self.frame(config).ids(tokenizer), config.model.context_length
        index = {label: number for number, label in enumerate(labels)}
        texts, targets, words, word_tags = [], [], [], []
        encodings = tokenizer.encode_batch(
            [words for words, _ in examples], is_pretokenized=True, add_special_tokens=False
        )
        for encoding, (_, tags) in zip(encodings, examples, strict=True):
            row, previous = [], -1
            for word in encoding.word_ids:
                assert word is not None  # only special tokens belong to none
                row.append(IGNORED if word == previous else index[tags[word]])
                previous = word
            framed = frame.single(encoding.ids, limit)
            inner = row[: len(framed) - len(frame.before) - len(frame.after)]
            texts.append(framed)
            targets.append([*[IGNORED] * len(frame.before), *inner,
                            *[IGNORED] * len(frame.after)])  # fmt: skip
            # What the baseline needs: the first token of each word, and its tag.
            first = [place for place, tag in enumerate(targets[-1]) if tag != IGNORED]
            words.append([framed[place] for place in first])
            word_tags.append([targets[-1][place] for place in first])
        return {
            "text": Ragged.of(texts), "label": Ragged.of(targets),
            "word": Ragged.of(words), "tag": Ragged.of(word_tags),
        }  # fmt: skip

    def objective(
        self, config: RunConfig, folder: Path, prepared: Prepared, world: World
    ) -> Tagging:
        pad = self.frame(config).ids(load_tokenizer(tokenizer_path(folder))).pad
        return Tagging(self.tables(folder), config, pad, world)

    @torch.no_grad()
    def scores(
        self, model: nn.Module, config: RunConfig, folder: Path, prepared: Prepared
    ) -> list[Score]:
        """Accuracy over words, and the mean F1 of the labels."""
        device = next(model.parameters()).device
        objective = self.objective(config, folder, prepared, World(0, 1, device))
        expected: list[int] = []
        found: list[int] = []
        for _, batch in objective.all_batches():
            chosen, targets = model(*batch.inputs).argmax(dim=2), batch.targets[0]
            expected += targets[targets != IGNORED].tolist()
            found += chosen[targets != IGNORED].tolist()
        guessed = self._by_word(objective.tables)
        right = sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)
        plain = sum(a == b for a, b in zip(guessed, expected, strict=True)) / len(expected)
        f1 = [mean_f1(answer, expected, len(config.labels)) for answer in (found, guessed)]
        name = "each word's commonest tag"
        return [
            Score("accuracy", right, plain, name, len(expected), "words"),
            Score("mean F1", f1[0], f1[1], name, len(expected), "words"),
        ]

    @staticmethod
    def _by_word(tables: Mapping[str, Table]) -> list[int]:
        """The commonest tag of each word of the training data, or of all where it is new."""
        train, held_out = tables["train"], tables["validation"]
        assert isinstance(train["word"], Ragged)
        assert isinstance(train["tag"], Ragged)
        assert isinstance(held_out["word"], Ragged)
        counts: dict[int, Counter[int]] = defaultdict(Counter)
        for word, tag in zip(train["word"].values, train["tag"].values, strict=True):
            counts[int(word)][int(tag)] += 1
        commonest = sum(counts.values(), Counter()).most_common(1)[0][0]
        best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
        return [best.get(int(word), commonest) for word in held_out["word"].values]


def mean_f1(found: Sequence[int], expected: Sequence[int], labels: int) -> float:
    """The mean over the labels that occur of 2 * hits / (found + expected)."""
    hits = Counter(a for a, b in zip(found, expected, strict=True) if a == b)
    sizes = Counter(found) + Counter(expected)
    each = [2 * hits[label] / sizes[label] for label in range(labels) if sizes[label]]
    return sum(each) / max(1, len(each))
