"""Checkpoints: a folder with checkpoint.pt, config.json and tokenizer.json.

checkpoint.pt holds tensors and plain values only and is read with weights_only=True: loading one
runs no code from the file.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kvik_train.atomic import atomic_write, write_json
from kvik_train.config import RunConfig, from_plain
from kvik_train.data.prepare import tokenizer_path
from kvik_train.errors import TrainError
from kvik_train.models import build_model

FORMAT = 1
# What a checkpoint holds besides its format.
_PARTS = {"config": dict, "progress": dict, "tokens_sha256": str, "model": dict, "optimizer": dict}


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0  # optimiser steps taken
    tokens: int = 0  # trained on; examples where a task counts these
    seconds: float = 0.0  # of training, over all sittings
    train_loss: float | None = None  # the latest, in nats
    validation_loss: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    config: RunConfig
    progress: Progress
    tokens_sha256: str
    model_state: dict[str, Any]
    optimizer_state: dict[str, Any]
    objective_state: torch.Tensor | None = None  # of recurrent models: what each row has read


def checkpoint_path(folder: Path) -> Path:
    return folder / "checkpoint.pt"


def save_config(folder: Path, config: RunConfig) -> None:
    """config.json, for people and tools; the same settings are in the checkpoint itself."""
    write_json(folder / "config.json", {"format": FORMAT, **config.to_dict()})


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint; at every moment there is a whole one."""
    with atomic_write(checkpoint_path(folder)) as file:
        torch.save(
            {
                "format": FORMAT,
                "config": checkpoint.config.to_dict(),
                "progress": asdict(checkpoint.progress),
                "tokens_sha256": checkpoint.tokens_sha256,
                "model": checkpoint.model_state,
                "optimizer": checkpoint.optimizer_state,
                "objective": checkpoint.objective_state,
            },
            file,
        )


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    try:
        values = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise TrainError(
            f"no checkpoint at {path}; name a folder that `kvik train --out` wrote"
        ) from None
    except OSError as error:
        raise TrainError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        # Bytes that are no checkpoint raise nearly anything, and torch's own words advise to load
        # the file in a way that runs code from it.
        raise TrainError(
            f"{path} is not a checkpoint that kvik train wrote, or it is damaged; "
            "name the run's folder"
        ) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise TrainError(
            f"{path} is not a checkpoint of this version (format {found}, expected {FORMAT})"
        )
    try:
        return _checkpoint_from(values)
    except TrainError as error:
        raise TrainError(f"{path} is damaged: {error}") from error


def _checkpoint_from(values: dict[str, Any]) -> Checkpoint:
    for name, kind in _PARTS.items():
        if not isinstance(values.get(name), kind):
            found = type(values[name]).__name__ if name in values else "missing"
            raise TrainError(f"{name} is {found}; it must be a {kind.__name__}")
    objective = values.get("objective")
    if not (objective is None or isinstance(objective, torch.Tensor)):
        raise TrainError(f"objective is {type(objective).__name__}; it must be a tensor")
    return Checkpoint(
        config=RunConfig.from_dict(values["config"]),
        progress=from_plain(Progress, values["progress"], "progress"),
        tokens_sha256=values["tokens_sha256"],
        model_state=values["model"],
        optimizer_state=values["optimizer"],
        objective_state=objective,
    )


def load_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[nn.Module, RunConfig, Path | None, Progress]:
    """A trained model for use: (model, config, tokenizer_path, progress).

    Args:
        path: the run's folder, or the checkpoint.pt in it.

    Returns:
        The model on the CPU in eval mode, the settings it was trained with (`config.family`,
        `config.task`, `config.model`, ...), the path of its tokenizer.json, which a model of images
        does not have, and how far training had come.

    Raises:
        TrainError: the checkpoint or its tokenizer is missing or cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        file = checkpoint_path(file)
    checkpoint = read_checkpoint(file)
    config = checkpoint.config
    tokenizer: Path | None = tokenizer_path(file.parent)
    if not hasattr(config.model, "vocab_size"):
        tokenizer = None
    elif tokenizer is not None and not tokenizer.is_file():
        raise TrainError(f"no tokenizer at {tokenizer}; it belongs beside {file.name}")
    model = build_model(config.model, config.task, config.labels)
    restore_model(model, checkpoint, file)
    return model.eval(), config, tokenizer, checkpoint.progress


def restore_model(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    try:
        model.load_state_dict(checkpoint.model_state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise TrainError(f"{path}: the weights do not fit the model: {reason}") from error


def start_from(model: nn.Module, base: Checkpoint, path: Path) -> list[str]:
    """Give a model to be fine-tuned the weights of another that it has in common with it.

    The weights of the same name, and where the model has a `backbone`, all of that one: the base is
    its backbone, or has one. What is left, a new head, keeps its initial weights.

    Returns:
        The names of the weights that are new.
    """
    own, given = model.state_dict(), base.model_state
    taken = {}
    for name, value in own.items():
        for other in (name, name.removeprefix("backbone.")):
            if other in given and given[other].shape == value.shape:
                taken[name] = given[other]
                break
    new = [name for name in own if name not in taken]
    lost = [name for name in new if name.startswith("backbone.") or not hasattr(model, "backbone")]
    if lost:
        raise TrainError(f"{path} cannot be fine-tuned: it has no fitting {lost[0]}")
    model.load_state_dict({**own, **taken})
    return new
