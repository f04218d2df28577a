"""What a benchmark keeps of each engine, whatever it measures.

CaseT is what was measured, a dataclass with a name; SampleT is one measurement of it.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Named(Protocol):
    @property
    def name(self) -> str: ...


CaseT = TypeVar("CaseT", bound=Named)
SampleT = TypeVar("SampleT")

STATUSES = ("ok", "wrong", "unsupported", "crashed", "timed out", "failed", "absent")


@dataclass
class CaseSamples(Generic[CaseT, SampleT]):
    """One case with one engine, and with kvik in the turns between."""

    case: CaseT
    samples: list[SampleT] = field(default_factory=list)
    kvik: list[SampleT] = field(default_factory=list)
    reason: str = ""  # why there are no samples, or none that were compared


@dataclass
class EngineEntry(Generic[CaseT, SampleT]):
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
    cases: list[CaseSamples[CaseT, SampleT]] = field(default_factory=list)

    def case(self, name: str) -> CaseSamples[CaseT, SampleT] | None:
        return next((found for found in self.cases if found.case.name == name), None)

    def reasons(self) -> list[tuple[str, str]]:
        """Cases that were not done, and why."""
        return [(found.case.name, found.reason) for found in self.cases if found.reason]


EntryT = TypeVar("EntryT", bound="EngineEntry[Any, Any]")


@dataclass
class EngineRecord(ABC, Generic[EntryT]):
    """A finished run."""

    machine: dict[str, Any]
    plan: dict[str, Any]
    commit: str
    # (model, precision, threads) joined by "/": ceilings that the run measured
    rooflines: dict[str, dict[str, float]] = field(default_factory=dict)
    entries: list[EntryT] = field(default_factory=list)

    @abstractmethod
    def summary(self, entry: EntryT, found: CaseSamples[Any, Any]) -> dict[str, Any]:
        """What is concluded from a case's samples."""

    def to_json(self) -> dict[str, Any]:
        """Times in seconds, sizes in bytes; medians and ratios beside the samples."""
        record = asdict(self)
        for made, entry in zip(record["entries"], self.entries, strict=True):
            for item, case in zip(made["cases"], entry.cases, strict=True):
                item["summary"] = self.summary(entry, case)
        return record

    def raise_ceilings(self, entry: EntryT, measured: dict[str, float]) -> None:
        """Ceilings are measured several times in a run; the highest count."""
        key = roofline_key(entry.model, entry.precision, entry.threads)
        known = self.rooflines.setdefault(key, measured)
        for name, value in measured.items():
            known[name] = max(known[name], value)


def roofline_key(model: str, precision: str, threads: int) -> str:
    return f"{model}/{precision}/{threads}"


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def find(
    entries: Iterable[EntryT], model: str, engine: str, precision: str, threads: int
) -> EntryT | None:
    wanted = (model, engine, precision, threads)
    for entry in entries:
        if (entry.model, entry.engine, entry.precision, entry.threads) == wanted:
            return entry
    return None
