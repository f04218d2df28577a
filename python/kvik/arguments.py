"""Checks of what callers pass, before the engine sees it: one clear line instead of a cast."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from kvik.errors import InvalidArgumentError

__all__ = [
    "CacheType",
    "Ids",
    "WeightType",
    "check_choice",
    "check_count",
    "check_ids",
    "check_names",
    "check_number",
    "check_path",
    "check_threads",
]

Ids: TypeAlias = "Sequence[int] | npt.NDArray[np.integer[Any]]"
WeightType: TypeAlias = Literal["f32", "bf16", "int8", "int4"]
CacheType: TypeAlias = Literal["f32", "bf16", "int8"]

_INT64 = np.iinfo(np.int64)
_MAX_THREADS = 1024  # the engine's own limit


def check_path(path: object) -> Path:
    """A path; anything else than str or os.PathLike is an error."""
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidArgumentError(f"path must be str or os.PathLike; found {type(path).__name__}")
    text = os.fsdecode(path)
    if "\0" in text:
        raise InvalidArgumentError(f"path holds a NUL character, which no file name has: {text!r}")
    return Path(text)


def check_names(names: object, name: str) -> list[str]:
    """A list of strings from a sequence of them; a string alone is an error."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise InvalidArgumentError(f"{name} must be a list of names; found {_shown(names)}")
    checked = list(names)
    for item in checked:
        if not isinstance(item, str):
            raise InvalidArgumentError(f"{name} must be names; found {_shown(item)}")
    return checked


def check_count(value: object, name: str, least: int, most: int = int(_INT64.max)) -> int:
    """An integer in [least, most]; bool and float are errors."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidArgumentError(f"{name} must be an integer; found {_shown(value)}")
    if not least <= value <= most:
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise InvalidArgumentError(f"{name} must be {limit}; found {value}")
    return int(value)


def check_threads(threads: object) -> int:
    """A number of threads as the engine takes it: None becomes 0, one for each CPU."""
    return 0 if threads is None else check_count(threads, "threads", 1, _MAX_THREADS)


def check_choice(value: object, name: str, choices: Iterable[str]) -> str:
    """One of a few words."""
    known = tuple(choices)
    if isinstance(value, str) and value in known:
        return value
    listed = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
    raise InvalidArgumentError(f"{name} must be {listed}; found {_shown(value)}")


def check_number(value: object, name: str) -> float:
    """A real number; its range is the engine's business."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidArgumentError(f"{name} must be a number; found {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidArgumentError(f"{name} is larger than any float64") from None


def check_ids(ids: object, name: str, vocab_size: int = 0) -> list[int]:
    """Token ids from a sequence of integers or a 1-D integer array.

    ``vocab_size`` > 0 also checks that each is below it.
    """
    if isinstance(ids, np.ndarray):
        return _within(_array_ids(ids, name), name, vocab_size)
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable) or isinstance(ids, Mapping):
        raise InvalidArgumentError(
            f"{name} must be token ids (a list of integers or a 1-D integer array); "
            f"found {_shown(ids)}"
        )
    checked: list[int] = []
    for position, item in enumerate(ids):
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
            raise InvalidArgumentError(
                f"{name}[{position}] must be an integer token id; found {_shown(item)}"
            )
        checked.append(int(item))
    return _within(checked, name, vocab_size)


def _array_ids(ids: npt.NDArray[Any], name: str) -> list[int]:
    if ids.ndim != 1:
        raise InvalidArgumentError(
            f"{name} must have one dimension; found an array of shape {list(ids.shape)} "
            f"(pass a list of 1-D arrays for several prompts)"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise InvalidArgumentError(f"{name} must hold integers; found dtype {ids.dtype}")
    return [int(item) for item in ids.tolist()]


def _within(ids: list[int], name: str, vocab_size: int) -> list[int]:
    for position, item in enumerate(ids):
        if item < 0 or item > _INT64.max or (vocab_size and item >= vocab_size):
            most = f"0 to {vocab_size - 1}" if vocab_size else "0 or more"
            raise InvalidArgumentError(
                f"{name}[{position}] is {item}, which is not in the vocabulary: ids are {most}"
            )
    return ids


def _shown(value: object) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{type(value).__name__} {text}"
