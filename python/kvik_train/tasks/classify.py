"""Sequence classification: the label of a text, by BERT's [CLS] or a GPT's last token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.config import DataConfig, RunConfig
from kvik_train.data.embedded import PYTHON_MODULES, python_modules
from kvik_train.data.framing import IGNORED, length_mask, pad_rows
from kvik_train.data.prepare import tokenizer_path
from kvik_train.data.records import Row
from kvik_train.data.table import Ragged, Table
from kvik_train.distributed import World
from kvik_train.errors import TrainError
from kvik_train.evaluation.scores import Score
from kvik_train.objective import Batch, ExampleObjective
from kvik_train.tasks.base import ExampleTask, Prepared
from kvik_train.tasks.lm import next_token_loss
from kvik_train.tokenizer import encode, load_tokenizer

Labelled = tuple[str, str]  # a text and its label


class Classification(ExampleObjective):
    def __init__(
        self, tables: Mapping[str, Table], config: RunConfig, pad: int, world: World
    ) -> None:
        super().__init__(tables, config.train, world)
        self._pad = pad
        self._segments = config.family == "bert"
        self._auxiliary = config.train.auxiliary_lm if config.family == "gpt" else 0.0

    def collate(
        self, split: str, rows: Sequence[int], drawn: tuple[int, slice] | None = None
    ) -> Batch:
        """Inputs ids [B, S], mask [B, S] and for BERT segments [B, S]; targets labels [B]."""
        table = self.tables[split]
        texts = [table["text"][row] for row in rows]
        inputs: tuple[Tensor, ...] = (pad_rows(texts, self._pad), length_mask(texts))
        if self._segments:
            inputs = (*inputs, torch.zeros_like(inputs[0]))
        labels = torch.tensor([int(table["label"][row]) for row in rows])
        return Batch(inputs, (labels,))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy; with `auxiliary_lm`, GPT-1's L2 + weight * L1 (section 3.2)."""
        (labels,) = batch.targets
        smoothing = self._config.label_smoothing if model.training else 0.0
        if not (self._auxiliary and model.training):
            logits = model(*batch.inputs)
            return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        ids, mask = batch.inputs
        logits, tokens = model(ids, mask, next_token=True)
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        return loss + self._auxiliary * next_token_loss(tokens[:, :-1], targets)


class Classify(ExampleTask[Labelled]):
    name = "classify"
    use = "classify"
    sources = (PYTHON_MODULES,)
    columns = ("text", "label")
    unit = "texts"

    def named(self, data: DataConfig) -> tuple[list[Labelled], list[Labelled] | None]:
        return python_modules(), None

    def parse(self, row: Row, known: Sequence[str]) -> Labelled:
        return row.text("text"), row.label("label", known)

    def read_path(self, source: str, known: Sequence[str], config: RunConfig) -> list[Labelled]:
        folder = Path(source).expanduser()
        if folder.is_dir() and (files := text_files(folder)):
            return [_read_text(path, label, known) for path, label in files]
        return super().read_path(source, known, config)

    def _files_at(self, source: str) -> list[Path]:
        folder = Path(source).expanduser()
        if folder.is_dir() and (files := text_files(folder)):
            return [path for path, _ in files]
        return super()._files_at(source)

    def texts(self, examples: Sequence[Labelled]) -> Iterable[str]:
        return (text for text, _ in examples)

    def labels_of(self, examples: Sequence[Labelled]) -> set[str]:
        return {label for _, label in examples}

    def encode(
        self,
        examples: Sequence[Labelled],
        tokenizer: Tokenizer,
        labels: Sequence[str],
        config: RunConfig,
    ) -> Table:
        frame, limit = self.frame(config).ids(tokenizer), config.model.context_length
        index = {label: number for number, label in enumerate(labels)}
        ids = encode(tokenizer, [text for text, _ in examples])
        return {
            "text": Ragged.of([frame.single(row, limit) for row in ids]),
            "label": np.array([index[label] for _, label in examples], dtype=np.int64),
        }

    def objective(
        self, config: RunConfig, folder: Path, prepared: Prepared, world: World
    ) -> Classification:
        pad = self.frame(config).ids(load_tokenizer(tokenizer_path(folder))).pad
        return Classification(self.tables(folder), config, pad, world)

    def scores(
        self, model: nn.Module, config: RunConfig, folder: Path, prepared: Prepared
    ) -> list[Score]:
        device = next(model.parameters()).device
        objective = self.objective(config, folder, prepared, World(0, 1, device))
        return [accuracy_score(model, objective, self.unit)]


@torch.no_grad()
def accuracy_score(model: nn.Module, objective: ExampleObjective, unit: str) -> Score:
    """Accuracy of logits [B, L], beside that of the commonest label of the training data."""
    right = total = 0
    for rows, batch in objective.all_batches():
        found = model(*batch.inputs).argmax(dim=1)
        right += int((found == batch.targets[0]).sum())
        total += len(rows)
    tables = objective.tables
    train: Any = tables["train"]["label"]
    held_out: Any = tables["validation"]["label"]
    (commonest, _), *_ = Counter(int(label) for label in train).most_common(1)
    majority = float(np.mean(np.asarray(held_out) == commonest))
    return Score("accuracy", right / total, majority, "commonest label", total, unit)


def text_files(folder: Path) -> list[tuple[Path, str]]:
    """(file, label) of FOLDER/LABEL/*.txt, in order of label and name; empty if there are none."""
    return [
        (file, label.name)
        for label in sorted(path for path in folder.iterdir() if path.is_dir())
        for file in sorted(label.rglob("*.txt"))
    ]


def _read_text(path: Path, label: str, known: Sequence[str]) -> Labelled:
    try:
        row = Row({"text": path.read_text("utf-8"), "label": label}, path, 1)
    except UnicodeDecodeError as error:
        raise TrainError(f"{path} is not UTF-8 text; convert it, for example with iconv") from error
    return row.text("text"), row.label("label", known)
