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
    """What to train with: data and settings. The task is the first that the family learns."""

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


def _bert(steps: int, batch_size: int, accumulate: int) -> Recipe:
    # Devlin et al. 2019, appendix A.2: linear decay, 10,000 steps of warm-up, 256 sequences a step.
    return Recipe(
        DataConfig(tokenizer="wordpiece", vocab_size=30522),
        TrainConfig(
            steps=steps, batch_size=batch_size, accumulate=accumulate, learning_rate=1e-4,
            min_learning_rate=0.0, warmup_steps=10_000, schedule="linear", weight_decay=0.01,
            beta2=0.999, epsilon=1e-6, eval_interval=1000, checkpoint_interval=1000,
        ),
    )  # fmt: skip


def _paper_transformer(steps: int, n_embd: int, warmup: int = 4000) -> Recipe:
    # Vaswani et al. 2017, section 5: about 25,000 tokens a step, here 640 sentences; the peak of
    # their schedule.
    return Recipe(
        DataConfig("number-words", tokenizer="bpe", vocab_size=37000, max_examples=1_000_000),
        TrainConfig(
            steps=steps, batch_size=640, accumulate=20, warmup_steps=warmup,
            learning_rate=(n_embd * warmup) ** -0.5, schedule="inverse-sqrt", weight_decay=0.0,
            beta2=0.98, epsilon=1e-9, gradient_clip=0.0, label_smoothing=0.1, eval_interval=1000,
            checkpoint_interval=1000,
        ),
    )  # fmt: skip


def _tiny_recurrent(learning_rate: float, steps: int = 1200) -> Recipe:
    return Recipe(
        DataConfig(max_bytes=4_000_000),
        TrainConfig(
            steps=steps, batch_size=16, learning_rate=learning_rate,
            min_learning_rate=learning_rate / 20, warmup_steps=50, weight_decay=0.0, beta2=0.99,
            gradient_clip=1.0,
        ),
    )  # fmt: skip


def _zaremba(steps: int) -> Recipe:
    # Zaremba et al. 2014 train with plain gradient descent; AdamW takes its place here.
    return Recipe(
        DataConfig(tokenizer="bpe", vocab_size=10000),
        TrainConfig(
            steps=steps, batch_size=20, learning_rate=1e-3, weight_decay=0.0, gradient_clip=5.0,
            eval_interval=1000, checkpoint_interval=1000,
        ),
    )  # fmt: skip


def _images(
    steps: int, batch_size: int, learning_rate: float, source: str = "digits", **train: Any
) -> Recipe:
    return Recipe(
        DataConfig(source, tokenizer="none"),
        TrainConfig(
            steps=steps, batch_size=batch_size, learning_rate=learning_rate,
            min_learning_rate=learning_rate / 100, validation_fraction=0.2, eval_windows=360,
            **train,
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
    "bert-tiny": Recipe(
        DataConfig(max_bytes=8_000_000, tokenizer="wordpiece", vocab_size=4096),
        TrainConfig(
            steps=1600,
            batch_size=16,
            learning_rate=2e-3,
            min_learning_rate=0.0,
            warmup_steps=200,
            schedule="linear",
            weight_decay=0.01,
            beta2=0.98,
            epsilon=1e-6,
            eval_interval=250,
            eval_windows=256,
            checkpoint_interval=250,
        ),
    ),
    "bert-base": _bert(1_000_000, 256, 16),
    "bert-large": _bert(1_000_000, 256, 64),
    "transformer-tiny": Recipe(
        DataConfig("number-words", tokenizer="bpe", vocab_size=400),
        TrainConfig(
            steps=1000,
            batch_size=64,
            warmup_steps=400,
            learning_rate=3e-3,
            schedule="inverse-sqrt",
            weight_decay=0.0,
            beta2=0.98,
            epsilon=1e-9,
            label_smoothing=0.1,
            eval_windows=512,
            eval_interval=250,
            checkpoint_interval=250,
        ),
    ),
    "transformer-base": _paper_transformer(100_000, 512),
    "transformer-big": _paper_transformer(300_000, 1024),
    "rnn-tiny": _tiny_recurrent(1e-3),
    "lstm-tiny": _tiny_recurrent(4e-3),
    "gru-tiny": _tiny_recurrent(3e-3),
    "lstm-medium": _zaremba(50_000),
    "lstm-large": _zaremba(70_000),
    "seq2seq-tiny": Recipe(
        DataConfig("number-words", tokenizer="bpe", vocab_size=400),
        TrainConfig(
            steps=1000,
            batch_size=64,
            warmup_steps=100,
            learning_rate=4e-3,
            min_learning_rate=1e-4,
            weight_decay=0.0,
            beta2=0.99,
            eval_windows=512,
            eval_interval=250,
            checkpoint_interval=250,
        ),
    ),
    # Luong et al. 2015, section 4.1: batches of 128, gradients clipped at 5, ten epochs.
    "seq2seq-luong": Recipe(
        DataConfig("number-words", tokenizer="bpe", vocab_size=50000, max_examples=1_000_000),
        TrainConfig(
            steps=80_000,
            batch_size=128,
            learning_rate=1e-3,
            gradient_clip=5.0,
            weight_decay=0.0,
            eval_interval=1000,
            checkpoint_interval=1000,
        ),
    ),
    "vit-tiny": _images(2000, 32, 1e-3, beta2=0.99, weight_decay=0.05),
    # Dosovitskiy et al. 2021, table 3, trained from nothing: heavy decay, long warm-up. Their
    # images are not embedded: a folder of images of any size takes their place.
    "vit-base-16": _images(
        90_000, 4096, 3e-3, "images", accumulate=256, warmup_steps=10_000, weight_decay=0.3
    ),
    "vit-large-16": _images(
        90_000, 4096, 3e-3, "images", accumulate=512, warmup_steps=10_000, weight_decay=0.3
    ),
    "cnn-tiny": _images(1000, 64, 2e-3, image_shift=1, weight_decay=0.01),
    "lenet-5": _images(20_000, 64, 1e-3, "images", image_shift=2, weight_decay=0.01),
}


def _fine(source: str, steps: int, learning_rate: float, **train: Any) -> Recipe:
    return Recipe(
        DataConfig(source),
        TrainConfig(
            steps=steps, batch_size=32, learning_rate=learning_rate, min_learning_rate=0.0,
            warmup_steps=50, schedule="linear", weight_decay=0.01, eval_windows=512, **train,
        ),
    )  # fmt: skip


# Second stages, by family and task. The tokenizer is always that of the first.
FINE_TUNING: dict[tuple[str, str], Recipe] = {
    ("gpt", "lm"): Recipe(
        DataConfig("python-stdlib:asyncio"),
        TrainConfig(
            steps=400,
            batch_size=8,
            learning_rate=1e-3,
            min_learning_rate=0.0,
            warmup_steps=20,
            eval_interval=100,
            checkpoint_interval=100,
        ),
    ),
    # Radford et al. 2018, section 4.1: the auxiliary objective counts half.
    ("gpt", "classify"): _fine("python-modules", 400, 1e-3, auxiliary_lm=0.5),
    ("bert", "classify"): _fine("python-modules", 400, 5e-4),
    ("bert", "tag"): _fine("python-tags", 300, 5e-4),
    ("bert", "answer"): _fine("python-functions", 400, 5e-4),
}


def find_fine_tuning(family: str, task: str) -> Recipe:
    """The recipe of a second stage; tasks are checked where models are built."""
    found = FINE_TUNING.get((family, task))
    if found is None:
        able = [name for kind, name in FINE_TUNING if kind == family]
        others = [f"{kind} for {name}" for kind, name in FINE_TUNING]
        near = difflib.get_close_matches(task, able, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        what = f"It can be for {', '.join(able)}" if able else f"There are: {'; '.join(others)}"
        raise TrainError(f"a {family} model cannot be fine-tuned for {task!r}: {hint}{what}")
    return found


def default_preset(family: str) -> str:
    """The smallest preset of a family."""
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise TrainError(f"unknown family {family!r}: {hint}The families are {', '.join(FAMILIES)}")
    return next(iter(FAMILIES[family].presets))


def find_preset(name: str) -> tuple[str, Any, Recipe]:
    """The family, the model's config and the recipe of a preset."""
    for family_name, family in FAMILIES.items():
        if name in family.presets:
            return family_name, family.presets[name], RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise TrainError(f"unknown preset {name!r}: {hint}The presets are {', '.join(RECIPES)}")
