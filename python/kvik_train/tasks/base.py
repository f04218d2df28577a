"""What a task is, and what those that learn from separate examples have in common."""

from __future__ import annotations

import difflib
import hashlib
import json
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from tokenizers import Tokenizer
from torch import nn

from kvik_train.atomic import write_json
from kvik_train.config import DataConfig, RunConfig
from kvik_train.data.framing import DECODER, ENCODER, Frame, with_frame
from kvik_train.data.prepare import Report, manifest_path, tokenizer_path
from kvik_train.data.records import Row, data_files, parse_columns, read_rows
from kvik_train.data.sampler import example_order
from kvik_train.data.table import Table, digest, load_table, save_table
from kvik_train.distributed import World
from kvik_train.errors import TrainError
from kvik_train.evaluation.scores import Score
from kvik_train.objective import Objective
from kvik_train.tokenizer import (
    BERT_TOKENS,
    END_OF_TEXT,
    check_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

Example = TypeVar("Example")
SPLITS = ("train", "validation")


class Prepared(Protocol):
    """Data as training reads it, in the folder of a run."""

    @property
    def vocab_size(self) -> int | None: ...  # of its tokenizer, where there is one
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def sha256(self) -> str: ...


class Task(ABC):
    name: ClassVar[str]  # as in --task and config.json
    use: ClassVar[str]  # what the exported file is for: its kvik.task
    sources: ClassVar[tuple[str, ...]]  # data sets that have a name

    @abstractmethod
    def check(self, config: RunConfig) -> None:
        """Raise what is wrong with data or settings; nothing is written."""

    @abstractmethod
    def prepare(self, config: RunConfig, folder: Path, report: Report) -> Prepared:
        """Write tokenizer and data into `folder`, unless that was done before."""

    @abstractmethod
    def load(self, folder: Path) -> Prepared | None:
        """What was prepared in `folder`, or None when that is missing or incomplete."""

    @abstractmethod
    def objective(
        self, config: RunConfig, folder: Path, prepared: Prepared, world: World
    ) -> Objective: ...

    @abstractmethod
    def scores(
        self, model: nn.Module, config: RunConfig, folder: Path, prepared: Prepared
    ) -> list[Score]:
        """How good the model is on the held-out data, each score with its baseline."""

    def unknown_source(self, source: str) -> TrainError:
        near = difflib.get_close_matches(source, self.sources, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return TrainError(
            f"no data at {source!r}: {hint}--data takes {', '.join(self.sources)}, or a file or "
            "folder"
        )


@dataclass(frozen=True)
class PreparedExamples:
    """What data.json records about the tables beside it."""

    task: str
    source: str
    signature: str
    settings: dict[str, Any]  # the DataConfig and what else it was made with
    training: int  # examples
    validation: int
    vocab_size: int | None
    labels: tuple[str, ...]
    sha256: str


class TableTask(Task):
    """Data that is kept as two tables, one to learn from and one to validate with."""

    unit: ClassVar[str] = "examples"

    def load(self, folder: Path) -> PreparedExamples | None:
        try:
            values = json.loads(manifest_path(folder).read_text())
            prepared = PreparedExamples(**{**values, "labels": tuple(values["labels"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        whole = prepared.vocab_size is None or tokenizer_path(folder).is_file()
        return prepared if whole and all(self.tables(folder).values()) else None

    def tables(self, folder: Path) -> dict[str, Table]:
        return {split: load_table(manifest_path(folder).parent, split) for split in SPLITS}

    def save(
        self,
        config: RunConfig,
        folder: Path,
        tables: dict[str, Table],
        labels: tuple[str, ...],
        vocab_size: int | None,
        settings: dict[str, Any],
        signature: str,
        report: Report,
    ) -> PreparedExamples:
        data = manifest_path(folder).parent
        counts = {}
        for split, table in tables.items():
            save_table(table, data, split)
            counts[split] = max((len(column) for column in table.values()), default=0)
            if not counts[split]:
                raise TrainError(
                    f"{config.data.source} leaves no {split} examples that fit the model; use more "
                    "data, or a larger --context"
                )
        prepared = PreparedExamples(
            task=self.name,
            source=config.data.source,
            signature=signature,
            settings=settings,
            training=counts["train"],
            validation=counts["validation"],
            vocab_size=vocab_size,
            labels=labels,
            sha256=digest(tables),
        )
        write_json(manifest_path(folder), asdict(prepared))
        what = [f"{counts['train']:,} {self.unit} to learn from, {counts['validation']:,} held out"]
        what += [f"{len(labels)} labels"] if labels else []
        what += [f"vocabulary {vocab_size}"] if vocab_size is not None else []
        report(", ".join(what))
        return prepared

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """What the tables depend on, as JSON gives it back."""
        found = {
            **asdict(config.data),
            "task": self.name,
            "base": config.base,
            "validation_fraction": config.train.validation_fraction,
            "context_length": getattr(config.model, "context_length", None),
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def signature(self, config: RunConfig) -> str:
        """A digest of names, sizes and times of the files, to notice that the data changed."""
        total = hashlib.sha256(f"{config.data.source} {platform.python_version()}".encode())
        for file in self.files(config):
            status = file.stat()
            total.update(f"\n{file} {status.st_size} {status.st_mtime_ns}".encode())
        return total.hexdigest()

    def files(self, config: RunConfig) -> list[Path]:
        """The files that the data is read from."""
        found = [] if config.data.source in self.sources else self._files_at(config.data.source)
        if config.data.validation is not None:
            found += self._files_at(config.data.validation)
        return found

    def _files_at(self, source: str) -> list[Path]:
        path = Path(source).expanduser()
        if not path.exists():
            raise self.unknown_source(source)
        return data_files(path)


class ExampleTask(TableTask, Generic[Example]):
    """Examples from a named data set or from files; a tokenizer; tables of ids."""

    columns: ClassVar[tuple[str, ...]]  # of files
    headless = False  # whether a TSV file may have no header

    # --- what a task says about its data ---

    @abstractmethod
    def named(self, data: DataConfig) -> tuple[list[Example], list[Example] | None]:
        """The examples of a named data set, and those to validate with if it says which."""

    @abstractmethod
    def parse(self, row: Row, known: Sequence[str]) -> Example:
        """An example from a file's row; `known`: the labels that it may have, if not empty."""

    @abstractmethod
    def texts(self, examples: Sequence[Example]) -> Iterable[str]:
        """What a tokenizer is trained on."""

    @abstractmethod
    def encode(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        labels: Sequence[str],
        config: RunConfig,
    ) -> Table: ...

    def labels_of(self, examples: Sequence[Example]) -> set[str]:
        return set()

    def special(self, config: RunConfig) -> tuple[str, ...]:
        return BERT_TOKENS if config.family == "bert" else (END_OF_TEXT,)

    def frame(self, config: RunConfig) -> Frame:
        return ENCODER if config.family == "bert" else DECODER

    # --- what is the same for all ---

    def check(self, config: RunConfig) -> None:
        parse_columns(config.data.columns, self.columns)
        if config.base is None:
            check_tokenizer(config.data.tokenizer, config.data.vocab_size, self.special(config))
        if config.data.source not in self.sources:
            self.read(config)

    def prepare(self, config: RunConfig, folder: Path, report: Report) -> PreparedExamples:
        settings = self.settings(config)
        signature = self.signature(config)
        present = self.load(folder)
        if present is not None and present.settings == settings and present.signature == signature:
            return present
        report(f"data {config.data.source}: reading")
        train, validation = self.read(config)
        labels = self.check_labels(train, config)
        data = manifest_path(folder).parent
        data.mkdir(parents=True, exist_ok=True)
        manifest_path(folder).unlink(missing_ok=True)  # it speaks of the files replaced below
        for stale in data.glob("*.npy"):
            stale.unlink()
        tokenizer = self.make_tokenizer(config, train)
        tables = {
            "train": self.encode(train, tokenizer, labels, config),
            "validation": self.encode(validation, tokenizer, labels, config),
        }
        save_tokenizer(tokenizer, tokenizer_path(folder))
        return self.save(
            config, folder, tables, labels, tokenizer.get_vocab_size(), settings, signature, report
        )

    def read(self, config: RunConfig) -> tuple[list[Example], list[Example]]:
        """The examples to train on and those to validate with, neither empty."""
        data = config.data
        validation: list[Example] | None
        if data.source in self.sources:
            train, validation = self.named(data)
        else:
            train, validation = self.read_path(data.source, (), config), None
        if data.validation is not None:
            known = sorted(self.labels_of(train))
            validation = self.read_path(data.validation, known, config)
        if validation is None:
            train, validation = _split(train, config.train.validation_fraction, data.max_examples)
        elif data.max_examples is not None:
            train = train[: data.max_examples]
        if not train or not validation:
            raise TrainError(
                f"{data.source} has too few examples: {len(train)} to learn from and "
                f"{len(validation)} to validate with; use more data"
            )
        return train, validation

    def read_path(self, source: str, known: Sequence[str], config: RunConfig) -> list[Example]:
        path = Path(source).expanduser()
        if not path.exists():
            raise self.unknown_source(source)
        names = parse_columns(config.data.columns, self.columns)
        rows = read_rows(path, self.columns, names, headless=self.headless)
        return [self.parse(row, known) for row in rows]

    def check_labels(self, train: Sequence[Example], config: RunConfig) -> tuple[str, ...]:
        """The labels of the data in their order, which is that of the model's outputs."""
        labels = tuple(sorted(self.labels_of(train)))
        if len(labels) == 1:
            raise TrainError(
                f"every example of {config.data.source} has the label {labels[0]!r}; "
                "there is nothing to tell apart"
            )
        return labels

    def make_tokenizer(self, config: RunConfig, train: Sequence[Example]) -> Tokenizer:
        """That of the run which is fine-tuned, or one trained on the examples' texts."""
        if config.base is not None:
            tokenizer = load_tokenizer(tokenizer_path(Path(config.base)))
        else:
            tokenizer = train_tokenizer(
                config.data.tokenizer, self.texts(train), config.data.vocab_size,
                self.special(config),
            )  # fmt: skip
        self.frame(config).ids(tokenizer)  # it must have these tokens
        with_frame(tokenizer, self.frame(config))
        return tokenizer


def _split(
    examples: list[Example], fraction: float, limit: int | None
) -> tuple[list[Example], list[Example]]:
    """Examples in an order that is always the same, without and with the share held out."""
    order = [int(index) for index in example_order(0, 0, len(examples))]
    if limit is not None:
        order = order[:limit]
    cut = len(order) - max(1, round(len(order) * fraction))
    return [examples[i] for i in order[:cut]], [examples[i] for i in order[cut:]]
