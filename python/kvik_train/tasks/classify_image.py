"""Classification of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvik_train.config import RunConfig
from kvik_train.data.images import (
    DIGITS,
    IMAGE_MEAN,
    IMAGE_STD,
    digits,
    image_files,
    read_images,
)
from kvik_train.data.prepare import Report, manifest_path
from kvik_train.data.sampler import example_order, noise
from kvik_train.data.table import Table
from kvik_train.distributed import World
from kvik_train.errors import TrainError
from kvik_train.evaluation.scores import Score
from kvik_train.objective import Batch, ExampleObjective
from kvik_train.tasks.base import Prepared, PreparedExamples, TableTask
from kvik_train.tasks.classify import accuracy_score


def normalised(pixels: np.ndarray) -> Tensor:
    """float32 from uint8, with IMAGE_MEAN and IMAGE_STD."""
    values = torch.from_numpy(np.array(pixels)).to(torch.float32)
    return (values / 255.0 - IMAGE_MEAN) / IMAGE_STD


class ImageClassification(ExampleObjective):
    def collate(
        self, split: str, rows: Sequence[int], drawn: tuple[int, slice] | None = None
    ) -> Batch:
        """Inputs images [B, channels, I, I]; targets labels [B]."""
        table = self.tables[split]
        images = normalised(np.stack([table["image"][row] for row in rows]))
        labels = torch.tensor([int(table["label"][row]) for row in rows])
        if drawn is not None and self._config.image_shift:
            step, part = drawn
            draws = noise(self._config.seed, step, 2 * self._config.batch_size).reshape(-1, 2)
            most = self._config.image_shift
            shifts = (draws[part] * (2 * most + 1)).astype(int) - most
            images = torch.stack([shifted(i, *s) for i, s in zip(images, shifts, strict=True)])
        return Batch((images,), (labels,))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        smoothing = self._config.label_smoothing if model.training else 0.0
        logits = model(*batch.inputs)
        return F.cross_entropy(logits.float(), batch.targets[0], label_smoothing=smoothing)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The image moved by whole pixels; what comes in is black."""
    most = max(abs(down), abs(right))
    if not most:
        return image
    size = image.shape[-1]
    wide = F.pad(image, (most, most, most, most), value=(0.0 - IMAGE_MEAN) / IMAGE_STD)
    return wide[:, most - down : most - down + size, most - right : most - right + size]


class ClassifyImage(TableTask):
    """An image folder has a subfolder for each label."""

    name = "classify-image"
    use = "classify_image"
    sources = (DIGITS,)
    unit = "images"

    def check(self, config: RunConfig) -> None:
        if config.data.tokenizer != "none":
            raise TrainError("images have no tokenizer; leave --tokenizer out")
        if config.data.source not in self.sources:
            self.files(config)
        elif (config.model.image_size, config.model.channels) != (8, 1):
            raise TrainError(
                f"the digits are images of 8 pixels and 1 channel, the model takes "
                f"{config.model.image_size} and {config.model.channels}; name a folder of images "
                "with --data"
            )

    def prepare(self, config: RunConfig, folder: Path, report: Report) -> PreparedExamples:
        settings, signature = self.settings(config), self.signature(config)
        present = self.load(folder)
        if present is not None and present.settings == settings and present.signature == signature:
            return present
        report(f"data {config.data.source}: reading")
        pixels, names, cut = self._read(config)
        labels = tuple(sorted(set(names[:cut])))
        index = {label: number for number, label in enumerate(labels)}
        numbers = np.array([index[name] for name in names], dtype=np.int64)
        tables: dict[str, Table] = {
            "train": {"image": pixels[:cut], "label": numbers[:cut]},
            "validation": {"image": pixels[cut:], "label": numbers[cut:]},
        }
        data = manifest_path(folder).parent
        data.mkdir(parents=True, exist_ok=True)
        manifest_path(folder).unlink(missing_ok=True)
        return self.save(config, folder, tables, labels, None, settings, signature, report)

    def settings(self, config: RunConfig) -> dict[str, Any]:
        size = [config.model.channels, config.model.image_size]
        return {**super().settings(config), "image": size}

    def files(self, config: RunConfig) -> list[Path]:
        sources = [config.data.source, config.data.validation]
        return [
            path
            for source in sources
            if source is not None and source not in self.sources
            for path, _ in self._labelled_files(source)
        ]

    def _labelled_files(self, source: str) -> list[tuple[Path, str]]:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise self.unknown_source(source)
        return image_files(folder)

    def _read(self, config: RunConfig) -> tuple[np.ndarray, list[str], int]:
        """All pixels and labels, and how many of them are to be learnt from: they come first."""
        data = config.data
        size, channels = config.model.image_size, config.model.channels
        if data.source in self.sources:
            pixels, names = digits()
        else:
            files = self._labelled_files(data.source)
            pixels, names = read_images(files, size, channels), [label for _, label in files]
        order = example_order(0, 0, len(names))[: data.max_examples]
        pixels, names = pixels[order], [names[i] for i in order]
        if data.validation is None:
            held_out = max(1, round(len(names) * config.train.validation_fraction))
            cut = len(names) - held_out
            self._known(names[cut:], names[:cut], data.source)
            return pixels, names, cut
        files = self._labelled_files(data.validation)
        more = [label for _, label in files]
        self._known(more, names, data.validation)
        return (
            np.concatenate((pixels, read_images(files, size, channels))),
            names + more,
            len(names),
        )

    @staticmethod
    def _known(found: list[str], known: list[str], source: str) -> None:
        if unknown := sorted(set(found) - set(known)):
            raise TrainError(
                f"{source}: unknown label {unknown[0]!r}; the training images have "
                f"{', '.join(sorted(set(known)))}: give it images to learn from"
            )

    def objective(
        self, config: RunConfig, folder: Path, prepared: Prepared, world: World
    ) -> ImageClassification:
        return ImageClassification(self.tables(folder), config.train, world)

    def scores(
        self, model: nn.Module, config: RunConfig, folder: Path, prepared: Prepared
    ) -> list[Score]:
        device = next(model.parameters()).device
        objective = self.objective(config, folder, prepared, World(0, 1, device))
        return [accuracy_score(model, objective, self.unit)]
