"""The rounds: kvik and one peer at a time take turns, each in a process of its own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic

from benchmarks.client import Client, EngineError
from benchmarks.entries import CaseSamples, CaseT, EngineRecord, EntryT, SampleT
from benchmarks.peers import installed_version
from benchmarks.peers.base import Engine
from benchmarks.plan import Turns

Progress = Callable[[str], None]
# (engine, threads) -> a context manager with ask(); tests put another in its place.
Open = Callable[[str, int], Client]


@dataclass(frozen=True)
class Prepared:
    """What prepare() answered for an engine, a model and a precision."""

    path: str
    bytes: int


class Rounds(ABC, Generic[EntryT, CaseT, SampleT]):
    """One run of a plan. A benchmark says what it measures by the methods that are abstract."""

    worker: str  # the module of the engines' processes

    def __init__(
        self,
        plan: Turns,
        record: EngineRecord[EntryT],
        progress: Progress,
        open_client: Open | None = None,
    ) -> None:
        self.record = record
        self._turns = plan
        self._progress = progress
        self._open = open_client or self._open_worker
        self._prepared: dict[tuple[str, str, str], Prepared] = {}

    # ---- what a benchmark measures ---------------------------------------------------------------

    @abstractmethod
    def run(self) -> None:
        """Measures all of the plan into the record."""

    @abstractmethod
    def engine(self, name: str) -> Engine:
        """A new instance of the engine of this name, nothing loaded."""

    @abstractmethod
    def new_entry(self, engine: Engine, model: str, precision: str, threads: int) -> EntryT: ...

    @abstractmethod
    def load_options(self, entry: EntryT) -> dict[str, Any]:
        """What the worker's load() takes besides path, precision and threads."""

    @abstractmethod
    def ceilings(self, client: Client, cases: Sequence[CaseT]) -> dict[str, float]:
        """Asks kvik's process for what the machine allows at most."""

    @abstractmethod
    def sample(self, client: Client, entry: EntryT, case: CaseT, warm_up: bool) -> SampleT:
        """Measures once, or warms up for that. Raises EngineError."""

    def finish(self, client: Client, entry: EntryT, case: CaseT) -> None:
        """After the rounds of a case, while the engine is still there. Raises EngineError."""

    # ---- one model, one precision, one thread count ----------------------------------------------

    def measure(self, model: str, precision: str, threads: int, cases: Sequence[CaseT]) -> None:
        """Adds kvik and every peer that has this precision to the record."""
        ours = self._entry("kvik", model, precision, threads)
        self.record.entries.append(ours)
        peers = [
            self._entry(name, model, precision, threads)
            for name in self._turns.peers
            if precision in self.engine(name).precisions
        ]
        self.record.entries += peers
        try:
            for entry in peers:
                if entry.status == "ok":
                    self._take_turns(ours, entry, cases)
            if not any(found.samples for found in ours.cases):  # no peer to take turns with
                self._take_turns(ours, None, cases)
        except EngineError as error:  # kvik itself: nothing to compare with
            ours.status, ours.reason = error.status, error.reason

    def _entry(self, name: str, model: str, precision: str, threads: int) -> EntryT:
        engine = self.engine(name)
        entry = self.new_entry(engine, model, precision, threads)
        entry.setting = engine.setting
        found = installed_version(engine)
        if found is None:
            entry.status = "absent"
            entry.reason = f"not installed (pip install {engine.distribution})"
        entry.version = found or ""
        return entry

    def _take_turns(self, ours: EntryT, entry: EntryT | None, cases: Sequence[CaseT]) -> None:
        """Rounds of kvik, peer, kvik, peer for every case; of kvik alone without a peer."""
        if entry is not None:  # kvik waits for no conversion
            try:
                self._prepare(entry)
            except EngineError as error:
                entry.status, entry.reason = error.status, error.reason
                return
        with self.loaded(ours) as mine:
            ours.isa = mine.ask("isa")
            if entry is None:
                self._cases(ours, mine, None, None, cases)
            else:
                try:
                    with self.loaded(entry) as theirs:
                        self._cases(ours, mine, entry, theirs, cases)
                except EngineError as error:
                    entry.status, entry.reason = error.status, error.reason
            # Last: what it reads is as large as the weights, and would count as kvik's memory.
            self._say(ours, "the machine's ceilings")
            self.record.raise_ceilings(ours, self.ceilings(mine, cases))

    def _cases(
        self,
        ours: EntryT,
        mine: Client,
        entry: EntryT | None,
        theirs: Client | None,
        cases: Sequence[CaseT],
    ) -> None:
        for case in cases:
            found: CaseSamples[CaseT, SampleT] = CaseSamples(case)
            own = ours.case(case.name)
            if own is None:
                own = CaseSamples(case)
                ours.cases.append(own)
            if entry is not None:
                entry.cases.append(found)
            self._say(entry or ours, case.name)
            try:
                self._rounds(case, mine, theirs, found, ours, entry)
            except EngineError as error:
                # A case that an engine does not do leaves the others; a dead engine does not.
                found.reason = error.reason
                if error.status not in ("unsupported", "failed"):
                    raise
            own.samples += found.kvik if entry is not None else found.samples

    def _rounds(
        self,
        case: CaseT,
        mine: Client,
        theirs: Client | None,
        found: CaseSamples[CaseT, SampleT],
        ours: EntryT,
        entry: EntryT | None,
    ) -> None:
        for _ in range(self._turns.rounds):
            for client, target in ((mine, ours), (theirs, entry)):
                if client is None or target is None:
                    continue
                time.sleep(self._turns.rest_seconds)
                # The other's turn sent this engine's threads to sleep and its data out of caches.
                self.sample(client, target, case, warm_up=True)
                sample = self.sample(client, target, case, warm_up=False)
                into = found.kvik if target is ours and entry is not None else found.samples
                into.append(sample)
        for client, target in ((mine, ours), (theirs, entry)):
            if client is not None and target is not None:
                try:
                    self.finish(client, target, case)
                except EngineError as error:  # the times stand
                    if error.status not in ("unsupported", "failed"):
                        raise
                    found.reason = f"{target.engine} was not compared: {error.reason}"
                if not target.peak_bytes:
                    target.peak_bytes = client.ask("peak")

    # ---- processes -------------------------------------------------------------------------------

    @contextmanager
    def loaded(self, entry: EntryT) -> Iterator[Client]:
        prepared = self._prepare(entry)
        entry.disk_bytes = prepared.bytes
        self._say(entry, "loading")
        with self._open(entry.engine, entry.threads) as client:
            answer = client.ask(
                "load",
                path=prepared.path,
                precision=entry.precision,
                threads=entry.threads,
                **self.load_options(entry),
            )
            entry.load_seconds.append(answer["seconds"])
            yield client

    def _prepare(self, entry: EntryT) -> Prepared:
        """In a process that ends: conversions take memory and leave threads."""
        key = (entry.engine, entry.model, entry.precision)
        if key in self._prepared:
            return self._prepared[key]
        self._say(entry, "preparing the model")
        with self._open(entry.engine, entry.threads) as client:
            answer = client.ask(
                "prepare",
                work=str(self._turns.work.resolve()),
                model=entry.model,
                precision=entry.precision,
            )
        self._prepared[key] = Prepared(answer["path"], answer["bytes"])
        return self._prepared[key]

    def _open_worker(self, engine: str, threads: int) -> Client:
        return Client(
            engine,
            log=self._turns.out / "logs" / f"{engine}.log",
            threads=threads,
            timeout_seconds=self._turns.timeout_seconds,
            module=self.worker,
        )

    def _say(self, entry: EntryT, what: str) -> None:
        threads = f"{entry.threads} thread{'s' if entry.threads > 1 else ''}"
        self._progress(f"{entry.model} {entry.precision} {threads}: {entry.engine}: {what}")
