"""The record of a run, and what is concluded from it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks import entries
from benchmarks.encoders.check import OutputCheck
from benchmarks.encoders.inputs import make_inputs
from benchmarks.encoders.operations import operations
from benchmarks.encoders.plan import Case
from benchmarks.entries import EngineEntry, EngineRecord, roofline_key, spread

CaseSamples: TypeAlias = entries.CaseSamples[Case, float]  # seconds of one call


@dataclass
class Entry(EngineEntry[Case, float]):
    """One engine with one model, precision and thread count."""

    checks: dict[str, OutputCheck] = field(default_factory=dict)  # by the name of the case


@dataclass
class Record(EngineRecord[Entry]):
    """A finished run."""

    unchecked: dict[str, str] = field(default_factory=dict)  # models without reference: why

    def summary(self, entry: Entry, found: CaseSamples) -> dict[str, Any]:
        return summarize(found, self.shortest_seconds(entry, found.case))

    def shortest_seconds(self, entry: Entry, case: Case) -> float | None:
        """What the products of a case take at this machine's peak in the entry's precision."""
        key = roofline_key(entry.model, entry.precision, entry.threads)
        if key not in self.rooflines:
            return None
        work = operations(case.model, make_inputs(case, seed=0))
        return work / self.rooflines[key]["operations_per_second"]


def summarize(found: CaseSamples, shortest: float | None) -> dict[str, Any]:
    """Seconds; kvik's in the same rounds; how many times faster it was.

    And the part of the arithmetic ceiling that was reached.
    """
    if not found.samples:
        return {}
    out: dict[str, Any] = {"seconds": spread(found.samples)}
    median = out["seconds"]["median"]
    if found.kvik:
        out["kvik_seconds"] = spread(found.kvik)
        out["kvik_ratio"] = median / statistics.median(found.kvik)
    if shortest is not None:
        out["shortest_seconds"] = shortest
        out["of_the_ceiling"] = shortest / median
    return out
