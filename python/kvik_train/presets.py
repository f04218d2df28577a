"""Presets: a model and the settings that train it well."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from kvik_train.config import DataConfig, TrainConfig
from kvik_train.errors import TrainError
from kvik_train.models import FAMILIES


@dataclass(frozen=True)
class Recipe:
    data: DataConfig
    train: TrainConfig = field(default_factory=TrainConfig)


def _gpt2(**train: Any) -> Recipe:
    # Brown et al. 2020, table 2.1: half a million tokens a step, learning rate by size.
    return Recipe(
        DataConfig(tokenizer="bpe", vocab_size=50257),
        TrainConfig(
            steps=100_000, batch_size=480, warmup_steps=2000, eval_interval=1000,
            checkpoint_interval=1000, **train,
        ),
    )  # fmt: skip


RECIPES: dict[str, Recipe] = {
    # Two minutes on two slow cores: 4 MB of text are more than they can read.
    "char-tiny": Recipe(
        DataConfig(max_bytes=4_000_000),
        TrainConfig(
            steps=1600,
            batch_size=8,
            learning_rate=4e-3,
            min_learning_rate=2e-4,
            warmup_steps=50,
            eval_interval=250,
            checkpoint_interval=250,
        ),
    ),
    "char-small": Recipe(DataConfig(), TrainConfig(steps=5000, batch_size=64, warmup_steps=100)),
    "gpt2": _gpt2(accumulate=40, learning_rate=6e-4, min_learning_rate=6e-5),
    "gpt2-medium": _gpt2(accumulate=60, learning_rate=3e-4, min_learning_rate=3e-5),
    "gpt2-large": _gpt2(accumulate=120, learning_rate=2.5e-4, min_learning_rate=2.5e-5),
    "gpt2-xl": _gpt2(accumulate=240, learning_rate=2e-4, min_learning_rate=2e-5),
}


def find_preset(name: str) -> tuple[str, Any, Recipe]:
    """The family, the model's config and the recipe of a preset."""
    for family_name, family in FAMILIES.items():
        if name in family.presets:
            return family_name, family.presets[name], RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise TrainError(f"unknown preset {name!r}: {hint}The presets are {', '.join(RECIPES)}")
