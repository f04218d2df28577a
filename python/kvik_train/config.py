"""The settings of a run: frozen dataclasses, saved as config.json with every checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kvik_train.errors import TrainError

Dtype = Literal["auto", "float32", "bfloat16"]
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class DataConfig:
    source: str = "python-stdlib"  # a named corpus, or the path of a text file or folder
    max_bytes: int | None = None  # of text; None takes all of it
    tokenizer: str = "char"
    vocab_size: int = 384  # at most

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            _require(self.max_bytes >= 1, "max_bytes", self.max_bytes, "at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. A batch is what one optimiser step sees, on all processes."""

    steps: int = 2000
    batch_size: int = 16  # windows per optimiser step, over all processes and accumulation parts
    accumulate: int = 1  # parts in which each process takes its share of the batch
    learning_rate: float = 1e-3  # the peak
    min_learning_rate: float = 1e-4  # at the end of the cosine
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip: float = 1.0  # largest global L2 norm; 0 turns clipping off
    validation_fraction: float = 0.1
    seed: int = 1
    eval_interval: int = 250  # steps
    eval_windows: int = 64
    checkpoint_interval: int = 250  # steps
    log_interval: int = 10  # steps
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    dtype: Dtype = "auto"  # of autocast; weights and optimiser state are float32
    compile: bool = False
    deterministic: bool = False  # slower kernels where the fast ones add in varying order (CUDA)
    threads: int | None = None  # of torch on the CPU; None leaves torch's own choice

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_size", "accumulate", "eval_interval", "eval_windows",
            "checkpoint_interval", "log_interval",
        ):  # fmt: skip
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.threads is not None:
            _require(self.threads >= 1, "threads", self.threads, "at least 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "positive")
        for name in ("min_learning_rate", "warmup_steps", "weight_decay", "gradient_clip", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        fraction = self.validation_fraction
        _require(0 < fraction < 1, "validation_fraction", fraction, "between 0 and 1")
        _require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")


# What may differ when a run is resumed. The rest decides what is being computed.
CHANGEABLE = frozenset({
    "steps", "accumulate", "eval_interval", "eval_windows", "checkpoint_interval", "log_interval",
    "device", "dtype", "compile", "deterministic", "threads",
})  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run; `model` is the config of one of the model families."""

    preset: str
    family: str
    model: Any
    data: DataConfig
    train: TrainConfig

    def to_dict(self) -> dict[str, Any]:
        return {
            "preset": self.preset,
            "family": self.family,
            "model": asdict(self.model),
            "data": asdict(self.data),
            "train": asdict(self.train),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        from kvik_train.models import config_from_dict

        try:
            return cls(
                preset=values["preset"],
                family=values["family"],
                model=config_from_dict(values["family"], values["model"]),
                data=DataConfig(**values["data"]),
                train=TrainConfig(**values["train"]),
            )
        except (KeyError, TypeError) as error:
            raise TrainError(
                f"the run's config is not one this version understands: {error}"
            ) from error


def check_resumable(saved: RunConfig, wanted: RunConfig) -> None:
    """Raise a TrainError that names the first setting that a resumed run may not change."""
    for part in ("model", "data", "train"):
        old, new = getattr(saved, part), getattr(wanted, part)
        for field in dataclasses.fields(old):
            before, after = getattr(old, field.name), getattr(new, field.name)
            if before != after and not (part == "train" and field.name in CHANGEABLE):
                raise TrainError(
                    f"cannot resume: {field.name} was {before!r} and is now {after!r}; "
                    "leave that option out, or start a new run in another --out"
                )


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise TrainError(f"{name} is {value!r}; it must be {expected}")
