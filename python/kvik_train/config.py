"""The settings of a run: frozen dataclasses, saved as config.json with every checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from kvik_train.errors import TrainError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Plain = TypeVar("Plain", bound="DataclassInstance")
Dtype = Literal["auto", "float32", "bfloat16"]
DTYPES = ("auto", "float32", "bfloat16")
Schedule = Literal["cosine", "linear", "inverse-sqrt"]
SCHEDULES = ("cosine", "linear", "inverse-sqrt")


@dataclass(frozen=True)
class DataConfig:
    source: str = "python-stdlib"  # a named data set, or the path of a file or folder
    max_bytes: int | None = None  # of text; None takes all of it
    tokenizer: str = "char"
    vocab_size: int = 384  # at most
    max_examples: int | None = None  # of a labelled data set; None takes all of them
    target: str | None = None  # the file of translations, line by line those of `source`
    validation: str | None = None  # a file or folder to validate with; None: a part of `source`
    columns: str | None = None  # what columns are called: "text=review,label=stars"

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_examples"):
            if getattr(self, name) is not None:
                _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. A batch is what one optimiser step sees, on all processes."""

    steps: int = 2000
    batch_size: int = 16  # windows per optimiser step, over all processes and accumulation parts
    accumulate: int = 1  # parts in which each process takes its share of the batch
    learning_rate: float = 1e-3  # the peak
    min_learning_rate: float = 1e-4  # at the end of the cosine
    warmup_steps: int = 100
    schedule: Schedule = "cosine"  # after the warm-up
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8  # of Adam
    label_smoothing: float = 0.0
    auxiliary_lm: float = 0.0  # weight of the next-token loss beside a GPT's classification
    image_shift: int = 0  # pixels by which training images are moved, at most
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
        for name in (
            "min_learning_rate", "warmup_steps", "weight_decay", "gradient_clip", "seed",
            "auxiliary_lm", "image_shift",
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        _require(self.epsilon > 0, "epsilon", self.epsilon, "positive")
        for name in ("beta1", "beta2", "label_smoothing"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        fraction = self.validation_fraction
        _require(0 < fraction < 1, "validation_fraction", fraction, "between 0 and 1")
        _require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        known = ", ".join(SCHEDULES)
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {known}")


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
    task: str = "lm"
    base: str | None = None  # the run whose weights and tokenizer a fine-tuning starts from
    labels: tuple[str, ...] = ()  # of the data, where it has any; known once that was read

    def to_dict(self) -> dict[str, Any]:
        return {
            "preset": self.preset,
            "family": self.family,
            "task": self.task,
            "base": self.base,
            "labels": list(self.labels),
            "model": asdict(self.model),
            "data": asdict(self.data),
            "train": asdict(self.train),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of to_dict; a TrainError names the first setting that is wrong."""
        from kvik_train.models import config_from_dict

        for name in ("preset", "family", "model", "data", "train"):
            if name not in values:
                raise TrainError(f"the config has no {name}")
        for name in ("preset", "family"):
            _require(isinstance(values[name], str), name, values[name], "a name")
        # Checkpoints from before there were tasks have none of these.
        task, base, labels = values.get("task", "lm"), values.get("base"), values.get("labels", [])
        _require(isinstance(task, str), "task", task, "a name")
        _require(base is None or isinstance(base, str), "base", base, "a path")
        are_texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        _require(are_texts, "labels", labels, "a list of texts")
        return cls(
            preset=values["preset"],
            family=values["family"],
            model=config_from_dict(values["family"], values["model"]),
            data=from_plain(DataConfig, values["data"], "data"),
            train=from_plain(TrainConfig, values["train"], "train"),
            task=task,
            base=base,
            labels=tuple(labels),
        )


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


def from_plain(kind: type[Plain], values: object, part: str) -> Plain:
    """A dataclass from a mapping such as asdict gives, its names and types checked.

    Fields that have a default may be missing.

    Args:
        part: what the mapping is called in errors.

    Raises:
        TrainError: names the first field that is unknown, missing, or of another type.
    """
    if not isinstance(values, Mapping):
        raise TrainError(f"{part} is {type(values).__name__}; it must be a mapping of settings")
    types = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    known = {field.name for field in fields}
    if unknown := sorted(str(name) for name in values if name not in known):
        raise TrainError(f"{part} has unknown {', '.join(unknown)}; was it saved by a newer Kvik?")
    for field in fields:
        if field.name in values:
            value, expected = values[field.name], types[field.name]
            name = getattr(expected, "__name__", expected) if type(expected) is type else expected
            _require(_fits(value, expected), f"{part}.{field.name}", value, f"of type {name}")
        elif field.default is dataclasses.MISSING:
            raise TrainError(f"{part} has no {field.name}")
    return kind(**values)


def _fits(value: object, expected: Any) -> bool:
    """Whether a value is of an annotated type: plain types, unions of them, and Literal."""
    if get_origin(expected) is Literal:
        return isinstance(value, str) and value in get_args(expected)
    if alternatives := get_args(expected):
        return any(_fits(value, item) for item in alternatives)
    return type(value) is expected or (expected is float and type(value) is int)


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise TrainError(f"{name} is {value!r}; it must be {expected}")
