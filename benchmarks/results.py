"""The record of a run, and what is concluded from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.plan import Case

STATUSES = ("ok", "wrong", "unsupported", "crashed", "timed out", "failed", "absent")


@dataclass(frozen=True)
class Sample:
    """One generation: seconds until every prompt's first token, and until the last."""

    first_seconds: float
    seconds: float


@dataclass
class CaseSamples:
    """One case with one engine, and with kvik in the turns between."""

    case: Case
    samples: list[Sample] = field(default_factory=list)
    kvik: list[Sample] = field(default_factory=list)
    reason: str = ""  # why there are no samples


@dataclass
class Entry:
    """One engine with one model, precision and thread count."""

    model: str
    engine: str
    precision: str
    threads: int
    status: str = "ok"
    reason: str = ""  # where the status is not "ok"
    version: str = ""
    setting: str = ""
    isa: str = ""
    disk_bytes: int = 0
    load_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0  # the whole process after the first case, Python included
    tokens: list[int] = field(default_factory=list)  # of the first case
    same_tokens: int | None = None  # leading tokens that are those of the f32 reference
    compared_tokens: int = 0
    reference: str = ""  # the engine that the tokens are compared with
    tie: bool = False  # the first difference is between two logits as good as equal
    cases: list[CaseSamples] = field(default_factory=list)

    def case(self, name: str) -> CaseSamples | None:
        return next((found for found in self.cases if found.case.name == name), None)


@dataclass
class Record:
    """A finished run."""

    machine: dict[str, Any]
    plan: dict[str, Any]
    commit: str
    # (model, precision, threads) joined by "/": ceilings that the run measured
    rooflines: dict[str, dict[str, float]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Times in seconds, sizes in bytes; medians and ratios beside the samples."""
        record = asdict(self)
        for made, entry in zip(record["entries"], self.entries, strict=True):
            for item, case in zip(made["cases"], entry.cases, strict=True):
                item["summary"] = summarize(case)
        return record


def roofline_key(model: str, precision: str, threads: int) -> str:
    return f"{model}/{precision}/{threads}"


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


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def leading_same(tokens: Sequence[int], reference: Sequence[int]) -> tuple[int, int]:
    """How many leading tokens are the same, of how many that both have."""
    count = min(len(tokens), len(reference))
    for i in range(count):
        if tokens[i] != reference[i]:
            return i, count
    return count, count


def find(
    entries: Iterable[Entry], model: str, engine: str, precision: str, threads: int
) -> Entry | None:
    wanted = (model, engine, precision, threads)
    for entry in entries:
        if (entry.model, entry.engine, entry.precision, entry.threads) == wanted:
            return entry
    return None
