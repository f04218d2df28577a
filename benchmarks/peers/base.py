"""What a benchmark asks of an engine."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workspace import Workspace


class UnsupportedCaseError(Exception):
    """The engine can't do this; the message says why, in a few words."""


@dataclass(frozen=True)
class Generated:
    """Greedy tokens, and how long they took, from the moment the prompts were handed over."""

    tokens: list[list[int]]  # [batch][new_tokens]
    first_seconds: float  # until the first token of every prompt was known
    seconds: float  # until all were


class Engine(ABC):
    """One engine with one model, in a process of its own.

    A subclass imports its package inside its methods: what is not installed is named, not missed.
    """

    name: str  # on the command line and in tables
    module: str  # what is imported; decides whether it is installed
    distribution: str  # on PyPI
    precisions: tuple[str, ...]
    setting: str  # what it was told to do, in a few words

    def isa(self) -> str:
        """The instruction set in use, where the engine says; else empty."""
        return ""


class Peer(Engine):
    """An engine that generates text."""

    recomputes = False  # the whole sequence for every token: few are enough

    @abstractmethod
    def prepare(self, work: Workspace, precision: str) -> Path:
        """Converts the model, or finds what was converted before: what load() takes.

        Raises UnsupportedCaseError.
        """

    @abstractmethod
    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        """Makes ready for sequences of up to `positions` tokens.

        Raises UnsupportedCaseError.
        """

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        """Continues prompts of equal length greedily; nothing ends a text early.

        Raises UnsupportedCaseError.
        """

    def gap(self, ids: Sequence[int], first: int, second: int) -> float:
        """Logit of `first` above that of `second` after these ids. Few engines say."""
        raise UnsupportedCaseError("gives no logits")


def step_by_step(
    prefill: Callable[[], list[int]], step: Callable[[list[int]], list[int]], new_tokens: int
) -> Generated:
    """For engines that are called once a token: both return the next token of each prompt."""
    start = time.perf_counter()
    last = prefill()
    first = time.perf_counter() - start
    tokens = [[token] for token in last]
    for _ in range(new_tokens - 1):
        last = step(last)
        for one, token in zip(tokens, last, strict=True):
            one.append(token)
    return Generated(tokens, first, time.perf_counter() - start)


def refuse_batch(prompts: Sequence[Any], why: str) -> None:
    if len(prompts) > 1:
        raise UnsupportedCaseError(why)
