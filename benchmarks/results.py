"""The record of a run, and what is concluded from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks import entries
from benchmarks.entries import EngineEntry, EngineRecord, spread
from benchmarks.plan import Case


@dataclass(frozen=True)
class Sample:
    """One generation: seconds until every prompt's first token, and until the last."""

    first_seconds: float
    seconds: float


CaseSamples: TypeAlias = entries.CaseSamples[Case, Sample]


@dataclass
class Entry(EngineEntry[Case, Sample]):
    """One engine with one model, precision and thread count."""

    tokens: list[int] = field(default_factory=list)  # of the first case
    same_tokens: int | None = None  # leading tokens that are those of the f32 reference
    compared_tokens: int = 0
    reference: str = ""  # the engine that the tokens are compared with
    tie: bool = False  # the first difference is between two logits as good as equal


@dataclass
class Record(EngineRecord[Entry]):
    """A finished run."""

    def summary(self, entry: Entry, found: CaseSamples) -> dict[str, Any]:
        return summarize(found)


def prefill_rate(case: Case, sample: Sample) -> float:
    """Prompt tokens per second, the first new token included."""
    return case.batch * case.prompt_tokens / sample.first_seconds


def decode_rate(case: Case, sample: Sample) -> float:
    """Tokens per second of all sequences together, after the first of each."""
    return case.batch * (case.new_tokens - 1) / max(sample.seconds - sample.first_seconds, 1e-9)


def summarize(found: CaseSamples) -> dict[str, dict[str, float]]:
    """min, median and max of every rate, and how many times faster kvik was in the same rounds."""
    case = found.case
    rates = {"prefill_tokens_per_second": prefill_rate}
    if case.new_tokens > 1:
        rates["decode_tokens_per_second"] = decode_rate
    out = {}
    for name, rate in rates.items():
        if not found.samples:
            continue
        theirs = [rate(case, sample) for sample in found.samples]
        out[name] = spread(theirs)
        if found.kvik:
            ours = statistics.median(rate(case, sample) for sample in found.kvik)
            out[name]["kvik_ratio"] = ours / out[name]["median"]
    if found.samples:
        out["first_token_seconds"] = spread([sample.first_seconds for sample in found.samples])
    return out


def leading_same(tokens: Sequence[int], reference: Sequence[int]) -> tuple[int, int]:
    """How many leading tokens are the same, of how many that both have."""
    count = min(len(tokens), len(reference))
    for i in range(count):
        if tokens[i] != reference[i]:
            return i, count
    return count, count
