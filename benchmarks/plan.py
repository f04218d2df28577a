"""What a run measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODELS = ("gpt2", "llama-135m", "llama-1.1b")
PRECISIONS = ("f32", "bf16", "int8", "int4")
CONTEXT = 1152  # positions that engines with a cache of fixed size make room for


@dataclass(frozen=True)
class Case:
    """Prompts of equal length, then greedy tokens, none of which ends the text."""

    name: str
    batch: int
    prompt_tokens: int
    new_tokens: int  # 1: prefill alone


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Who takes turns with kvik, at what, and where it goes: the part common to all benchmarks."""

    models: tuple[str, ...]
    peers: tuple[str, ...]  # without kvik
    precisions: tuple[str, ...]
    threads: tuple[int, ...]
    rounds: int
    work: Path = Path("build/benchmarks")
    out: Path = Path("build/benchmarks/results")
    seed: int = 0
    timeout_seconds: float = 900.0  # of one command to an engine
    rest_seconds: float = 0.3  # between turns: idle threads of the other engine stop spinning


@dataclass(frozen=True, kw_only=True)
class Plan(Turns):
    """Everything that decides what is measured and where it goes."""

    cases: tuple[Case, ...]  # the first is the one that memory and tokens are taken from
    scaling_threads: tuple[int, ...] = ()  # kvik and peers once more, the first case alone


def short_cases(new_tokens: int = 32) -> tuple[Case, ...]:
    return (Case("decode", 1, 128, new_tokens), Case("batch 8", 8, 32, 16))


def all_cases(new_tokens: int = 128) -> tuple[Case, ...]:
    lengths = tuple(Case(f"prompt {n}", 1, n, 1) for n in (16, 32, 64, 128, 256, 512, 1000))
    return (Case("decode", 1, 128, new_tokens), Case("batch 8", 8, 128, 32), *lengths)
