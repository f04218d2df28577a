"""BERT's pre-training: masked language modelling and next-sentence prediction.

Devlin et al. 2019, section 3.1 and appendix A.1-2. Segments are runs of lines of the corpus. In
half of the pairs the second one follows the first, in the others it comes from somewhere else. Of
15 % of the tokens, which the model has to predict, 80 % are replaced by [MASK], 10 % by a random
token, and 10 % are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.config import RunConfig
from kvik_train.data.corpus import NAMED, Corpus, open_corpus
from kvik_train.data.framing import (
    ENCODER,
    IGNORED,
    FrameIds,
    length_mask,
    pad_rows,
    with_frame,
)
from kvik_train.data.prepare import Report, manifest_path, tokenizer_path
from kvik_train.data.sampler import noise
from kvik_train.data.table import Ragged, Table
from kvik_train.distributed import World
from kvik_train.errors import TrainError
from kvik_train.evaluation.scores import Score
from kvik_train.objective import Batch, ExampleObjective
from kvik_train.tasks.base import Prepared, PreparedExamples, TableTask
from kvik_train.tokenizer import (
    BERT_TOKENS,
    check_tokenizer,
    encode,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

CHOSEN = 0.15  # of the tokens
MASKED, RANDOM = 0.8, 0.1  # of those; the rest stays
_MASK = BERT_TOKENS.index("[MASK]")
_SPECIAL = len(BERT_TOKENS)  # ids below it are special
_EVALUATION = 0x6D6C6D  # the seed of the masks in validation
_SCORED_PAIRS = 512


@dataclass(frozen=True)
class Masked:
    ids: list[int]  # with their masks
    second: int  # where the second segment begins
    places: list[int]  # of the tokens to predict
    expected: list[int]  # these tokens
    is_random: bool  # whether the second segment is from elsewhere


class MaskedTokens(ExampleObjective):
    def __init__(
        self, tables: Mapping[str, Table], config: RunConfig, frame: FrameIds, world: World
    ) -> None:
        super().__init__(tables, config.train, world)
        self._frame = frame
        self._limit = config.model.context_length
        self._vocab_size = config.model.vocab_size

    def collate(
        self, split: str, rows: Sequence[int], drawn: tuple[int, slice] | None = None
    ) -> Batch:
        """Inputs ids, mask, segments [B, S] and places [B, M]; targets tokens [B, M], next [B]."""
        size = 2 + 3 * self._limit  # numbers that a row needs
        if drawn is not None:
            step, part = drawn
            draws = noise(self._config.seed, step, size * self._config.batch_size)
            draws = draws.reshape(-1, size)[part]
        else:
            draws = np.stack([noise(_EVALUATION, row, size) for row in rows])
        made = [self._masked(split, row, u) for row, u in zip(rows, draws, strict=True)]
        texts = [item.ids for item in made]
        mask = length_mask(texts)
        second = torch.tensor([item.second for item in made])
        segments = ((torch.arange(mask.shape[1]) >= second[:, None]) & (mask == 1)).long()
        inputs = (pad_rows(texts, self._frame.pad), mask, segments,
                  pad_rows([item.places for item in made], 0))  # fmt: skip
        tokens = pad_rows([item.expected for item in made], IGNORED)
        return Batch(inputs, (tokens, torch.tensor([int(item.is_random) for item in made])))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of both mean cross-entropies, as in the paper."""
        tokens, following = model(*batch.inputs)
        masked = F.cross_entropy(tokens.float().flatten(0, 1), batch.targets[0].flatten())
        return masked + F.cross_entropy(following.float(), batch.targets[1])

    def _masked(self, split: str, row: int, draws: npt.NDArray[np.float64]) -> Masked:
        table = self.tables[split]
        lines, documents = table["line"], table["document"]
        room = self._limit - len(self._frame.before) - 2 * len(self._frame.after)
        first, after = _run(table, row, room // 2)
        is_random = bool(draws[0] < 0.5)
        if after >= len(lines) or documents[after] != documents[row]:
            is_random = True  # nothing follows
        if is_random:
            after = int(draws[1] * len(lines))
        second, _ = _run(table, after, room - len(first))
        ids = self._frame.pair(first, second, self._limit)
        begin = self._frame.second_start(first, second, self._limit)
        candidates = [place for place, token in enumerate(ids) if token >= _SPECIAL]
        choice, change, replacement = draws[2:].reshape(3, -1)
        order = np.argsort(choice[: len(candidates)], kind="stable")
        count = max(1, round(CHOSEN * len(candidates)))
        places = sorted(candidates[i] for i in order[:count])
        expected = [ids[place] for place in places]
        for number, place in enumerate(places):
            if change[number] < MASKED:
                ids[place] = _MASK
            elif change[number] < MASKED + RANDOM:
                span = self._vocab_size - _SPECIAL
                ids[place] = _SPECIAL + int(replacement[number] * span)
        return Masked(ids, begin, places, expected, is_random)


def _run(table: Table, row: int, room: int) -> tuple[list[int], int]:
    """Lines from `row` on, until `room` tokens or the document's end, and the row after them."""
    lines, documents = table["line"], table["document"]
    ids: list[int] = []
    end = row
    while end < len(lines) and documents[end] == documents[row] and len(ids) < room:
        ids += lines[end].tolist()
        end += 1
    return ids[:room], end


class MaskedLanguageModelling(TableTask):
    name = "mlm"
    use = "fill_mask"
    sources = NAMED
    unit = "lines"

    def check(self, config: RunConfig) -> None:
        check_tokenizer(config.data.tokenizer, config.data.vocab_size, BERT_TOKENS)
        open_corpus(config.data.source, config.data.max_bytes).check()

    def files(self, config: RunConfig) -> list[Path]:
        return list(open_corpus(config.data.source).files)

    def prepare(self, config: RunConfig, folder: Path, report: Report) -> PreparedExamples:
        settings, signature = self.settings(config), self.signature(config)
        present = self.load(folder)
        if present is not None and present.settings == settings and present.signature == signature:
            return present
        corpus = open_corpus(config.data.source, config.data.max_bytes)
        data = manifest_path(folder).parent
        data.mkdir(parents=True, exist_ok=True)
        manifest_path(folder).unlink(missing_ok=True)  # it speaks of the files replaced below
        if config.base is not None:
            tokenizer = load_tokenizer(tokenizer_path(Path(config.base)))
        else:
            report(f"corpus {corpus.name}: training the {config.data.tokenizer} tokenizer")
            tokenizer = train_tokenizer(
                config.data.tokenizer, (chunk.text for chunk in corpus.chunks()),
                config.data.vocab_size, BERT_TOKENS,
            )  # fmt: skip
        with_frame(tokenizer, ENCODER)
        rows, documents = [], []
        for document, lines in enumerate(_documents(corpus)):
            for ids in encode(tokenizer, lines):
                if ids:
                    rows.append(ids)
                    documents.append(document)
        cut = len(rows) - int(len(rows) * config.train.validation_fraction)
        if not 0 < cut < len(rows):
            raise TrainError(f"{corpus.name} has {len(rows)} lines of text; use more text")
        tables: dict[str, Table] = {
            "train": {"line": Ragged.of(rows[:cut]), "document": np.array(documents[:cut])},
            "validation": {"line": Ragged.of(rows[cut:]), "document": np.array(documents[cut:])},
        }
        save_tokenizer(tokenizer, tokenizer_path(folder))
        size = tokenizer.get_vocab_size()
        return self.save(config, folder, tables, (), size, settings, signature, report)

    def objective(
        self, config: RunConfig, folder: Path, prepared: Prepared, world: World
    ) -> MaskedTokens:
        frame = ENCODER.ids(load_tokenizer(tokenizer_path(folder)))
        return MaskedTokens(self.tables(folder), config, frame, world)

    @torch.no_grad()
    def scores(
        self, model: nn.Module, config: RunConfig, folder: Path, prepared: Prepared
    ) -> list[Score]:
        """Of masked tokens beside their frequencies alone, and of the next sentence."""
        device = next(model.parameters()).device
        objective = self.objective(config, folder, prepared, World(0, 1, device))
        lines: Any = objective.tables["train"]["line"]
        counts = np.bincount(lines.values, minlength=config.model.vocab_size) + 1.0
        frequencies = torch.from_numpy(np.log(counts / counts.sum()))
        loss = plain = 0.0
        right = usual = following = related = tokens = pairs = 0
        for rows, batch in objective.all_batches(limit=_SCORED_PAIRS):
            logits, next_logits = model(*batch.inputs)
            chosen = batch.targets[0] != IGNORED
            expected, found = batch.targets[0][chosen], logits[chosen]
            loss += float(F.cross_entropy(found.float(), expected, reduction="sum"))
            plain -= float(frequencies[expected.cpu()].sum())
            right += int((found.argmax(dim=1) == expected).sum())
            usual += int((expected == int(frequencies.argmax())).sum())
            following += int((next_logits.argmax(dim=1) == batch.targets[1]).sum())
            related += int(batch.targets[1].sum())
            tokens += len(expected)
            pairs += len(rows)
        name, majority = "commonest token", max(related, pairs - related) / pairs
        return [
            Score("masked tokens, loss", loss / tokens, plain / tokens, "unigrams", tokens,
                  "tokens", "loss"),
            Score("masked tokens, accuracy", right / tokens, usual / tokens, name, tokens,
                  "tokens"),
            Score("next sentence, accuracy", following / pairs, majority, "the commoner answer",
                  pairs, "pairs"),
        ]  # fmt: skip


def _documents(corpus: Corpus) -> Iterator[list[str]]:
    """The lines of each document that hold anything."""
    pieces: list[str] = []
    for chunk in corpus.chunks():
        pieces.append(chunk.text)
        if chunk.ends_document:
            yield [line for line in "".join(pieces).splitlines() if line.strip()]
            pieces = []
