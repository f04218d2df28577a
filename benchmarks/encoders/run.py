"""The rounds of encoders and translation, and the comparison of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.client import Client, EngineError
from benchmarks.encoders.check import compare
from benchmarks.encoders.engines import engine
from benchmarks.encoders.engines.base import EncoderEngine, Outputs
from benchmarks.encoders.plan import Case, Plan
from benchmarks.encoders.results import Entry, Record
from benchmarks.machine import commit, describe
from benchmarks.peers.base import Engine
from benchmarks.rounds import Open, Progress, Rounds

REFERENCE = "onnxruntime"


class Runner(Rounds[Entry, Case, float]):
    """One run of a plan."""

    worker = "benchmarks.encoders.worker"
    record: Record

    def __init__(self, plan: Plan, progress: Progress, open_client: Open | None = None) -> None:
        self._plan = plan
        self._folder = plan.out.resolve() / "outputs"  # of the models; files, removed when read
        self._references: dict[Case, Outputs] = {}
        super().__init__(plan, Record(describe(), asdict(plan), commit()), progress, open_client)

    def run(self) -> None:
        for model in self._plan.models:
            self._compute_references(model)
            for precision in self._plan.precisions:
                for threads in self._plan.threads:
                    self.measure(model, precision, threads, self._plan.of(model))

    # ---- what is measured ------------------------------------------------------------------------

    def engine(self, name: str) -> EncoderEngine:
        return engine(name)

    def new_entry(self, engine: Engine, model: str, precision: str, threads: int) -> Entry:
        return Entry(model, engine.name, precision, threads)

    def load_options(self, entry: Entry) -> dict[str, Any]:
        return {"model": entry.model}

    def ceilings(self, client: Client, cases: Sequence[Case]) -> dict[str, float]:
        return {"operations_per_second": client.ask("peak_operations")}

    def sample(self, client: Client, entry: Entry, case: Case, warm_up: bool) -> float:
        seconds: float = client.ask("run", case=asdict(case), seed=self._plan.seed)
        return seconds

    # ---- were the outputs right ------------------------------------------------------------------

    def finish(self, client: Client, entry: Entry, case: Case) -> None:
        """Compares an engine's outputs once for each case."""
        if case not in self._references or case.name in entry.checks:
            return
        path = self._folder / f"{entry.engine}.npz"
        client.ask("save", path=str(path))
        check = compare(_take(path), self._references[case])
        entry.checks[case.name] = check
        wrong = check.wrong() if entry.precision == "f32" else ""
        if wrong:
            entry.status, entry.reason = "wrong", f"{case.name}: {wrong}"

    def _compute_references(self, model: str) -> None:
        self._progress(f"{model}: the outputs of {REFERENCE} in f32")
        cases = self._plan.of(model)
        paths = [self._folder / f"reference-{index}.npz" for index in range(len(cases))]
        threads = self._plan.threads[0]
        try:
            with self._open(REFERENCE, threads) as client:
                client.ask(
                    "reference",
                    work=str(self._plan.work.resolve()),
                    cases=[asdict(case) for case in cases],
                    seed=self._plan.seed,
                    threads=threads,
                    paths=[str(path) for path in paths],
                )
        except EngineError as error:
            self.record.unchecked[model] = f"{REFERENCE} {error}"
            return
        for case, path in zip(cases, paths, strict=True):
            self._references[case] = _take(path)


def _take(path: Path) -> Outputs:
    """The arrays of a file that is not needed any longer."""
    with np.load(path) as file:
        found = dict(file)
    path.unlink()
    return found
