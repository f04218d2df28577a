"""Translation: the next target token, given the source and the target so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.config import DataConfig, RunConfig
from kvik_train.data.embedded import NUMBER_WORDS, number_words
from kvik_train.data.framing import IGNORED, SOURCE, Frame, length_mask, pad_rows
from kvik_train.data.prepare import tokenizer_path
from kvik_train.data.records import Row, read_lines
from kvik_train.data.table import Ragged, Table
from kvik_train.distributed import World
from kvik_train.errors import TrainError
from kvik_train.evaluation.scores import Score
from kvik_train.evaluation.translation import bleu, exact_match, greedy_translations
from kvik_train.objective import Batch, ExampleObjective
from kvik_train.tasks.base import ExampleTask, Prepared
from kvik_train.tokenizer import TRANSLATION_TOKENS, encode, load_tokenizer

Pair = tuple[str, str]  # a sentence and its translation
PAD, START, END = range(3)  # the ids of TRANSLATION_TOKENS
_NUMBERS = 40_000  # pairs of number words, unless --max-examples says how many
_SCORED = 1000  # held-out sentences that are translated


class Translation(ExampleObjective):
    """Teacher forcing, with label smoothing (Szegedy et al. 2016) where it is set."""

    perplexity = True

    def collate(
        self, split: str, rows: Sequence[int], drawn: tuple[int, slice] | None = None
    ) -> Batch:
        """Inputs source ids and mask [B, S], target ids [B, T]; targets the next ids [B, T]."""
        table = self.tables[split]
        sources = [table["source"][row] for row in rows]
        targets = [list(table["target"][row]) for row in rows]
        inputs = (
            pad_rows(sources, PAD),
            length_mask(sources),
            pad_rows([[START, *target] for target in targets], PAD),
        )
        return Batch(inputs, (pad_rows([[*target, END] for target in targets], IGNORED),))

    def weight(self, batch: Batch, rows: int) -> float:
        return float((batch.targets[0] != IGNORED).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats per target token; validation is without smoothing."""
        output = model(*batch.inputs)
        logits = output[0] if isinstance(output, tuple) else output  # the other are alignments
        return F.cross_entropy(
            logits.float().flatten(0, 1),
            batch.targets[0].flatten(),
            label_smoothing=self._config.label_smoothing if model.training else 0.0,
        )


class Translate(ExampleTask[Pair]):
    name = "translate"
    use = "translate"
    sources = (NUMBER_WORDS,)
    columns = ("source", "target")
    headless = True
    unit = "sentences"

    def named(self, data: DataConfig) -> tuple[list[Pair], list[Pair] | None]:
        return number_words(data.max_examples or _NUMBERS)

    def parse(self, row: Row, known: Sequence[str]) -> Pair:
        return row.text("source"), row.text("target")

    def read_path(self, source: str, known: Sequence[str], config: RunConfig) -> list[Pair]:
        if config.data.target is None or source != config.data.source:
            return super().read_path(source, known, config)
        sources, targets = (
            read_lines(Path(name).expanduser()) for name in (source, config.data.target)
        )
        if len(sources) != len(targets):
            raise TrainError(
                f"{source} has {len(sources)} lines and {config.data.target} has {len(targets)}; "
                "line by line, one is the translation of the other"
            )
        pairs = list(zip(sources, targets, strict=True))
        return [(a, b) for a, b in pairs if a.strip() and b.strip()]

    def files(self, config: RunConfig) -> list[Path]:
        target = config.data.target
        if target is None:
            return super().files(config)
        for name in (config.data.source, target):
            if not Path(name).expanduser().is_file():
                raise TrainError(f"no such file: {name}; --data and --target name one file each")
        more = [] if config.data.validation is None else self._files_at(config.data.validation)
        return [Path(config.data.source).expanduser(), Path(target).expanduser(), *more]

    def check(self, config: RunConfig) -> None:
        self.files(config)
        super().check(config)

    def texts(self, examples: Sequence[Pair]) -> Iterable[str]:
        return (text for pair in examples for text in pair)

    def special(self, config: RunConfig) -> tuple[str, ...]:
        return TRANSLATION_TOKENS

    def frame(self, config: RunConfig) -> Frame:
        return SOURCE

    def encode(
        self,
        examples: Sequence[Pair],
        tokenizer: Tokenizer,
        labels: Sequence[str],
        config: RunConfig,
    ) -> Table:
        """Sentences that are longer than the context are left out."""
        limit = config.model.context_length - 1  # with <s> or </s>
        sources = encode(tokenizer, [source for source, _ in examples])
        targets = encode(tokenizer, [target for _, target in examples])
        pairs = [
            ([*source, END], target)
            for source, target in zip(sources, targets, strict=True)
            if max(len(source), len(target)) <= limit
        ]
        return {
            "source": Ragged.of([source for source, _ in pairs]),
            "target": Ragged.of([target for _, target in pairs]),
        }

    def objective(
        self, config: RunConfig, folder: Path, prepared: Prepared, world: World
    ) -> Translation:
        return Translation(self.tables(folder), config.train, world)

    def scores(
        self, model: nn.Module, config: RunConfig, folder: Path, prepared: Prepared
    ) -> list[Score]:
        """Exact match and BLEU of greedy translations, beside those of copying the source."""
        device = next(model.parameters()).device
        objective = self.objective(config, folder, prepared, World(0, 1, device))
        tokenizer = load_tokenizer(tokenizer_path(folder))
        limit = config.model.context_length - 1
        found, expected, copied = [], [], []
        table = objective.tables["validation"]
        for rows, batch in objective.all_batches(limit=_SCORED):
            source, mask, _ = batch.inputs
            ids = greedy_translations(model, source, mask, start=START, end=END, limit=limit)
            found += tokenizer.decode_batch(ids)
            expected += tokenizer.decode_batch([list(table["target"][row]) for row in rows])
            copied += tokenizer.decode_batch([list(table["source"][row]) for row in rows])
        characters = config.data.source == NUMBER_WORDS
        points = [bleu(texts, expected, characters=characters) for texts in (found, copied)]
        name, count = "copying the source", len(expected)
        return [
            Score("exact match", exact_match(found, expected), exact_match(copied, expected), name,
                  count, self.unit),
            Score("BLEU of characters" if characters else "BLEU", points[0], points[1], name, count,
                  self.unit, "points"),
        ]  # fmt: skip
