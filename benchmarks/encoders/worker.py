"""One engine in a process of its own: ``python -m benchmarks.encoders.worker ENGINE``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encoders.engines import engine
from benchmarks.encoders.engines.base import Call, EncoderEngine, Outputs
from benchmarks.encoders.inputs import make_inputs
from benchmarks.encoders.models import EncoderFolder
from benchmarks.encoders.plan import Case
from benchmarks.worker import EngineWorker, serve_standard_input
from benchmarks.workspace import bytes_of


class EncoderWorker(EngineWorker):
    """The commands. A case comes as its fields, outputs go as files of numpy."""

    engine: EncoderEngine

    def __init__(self, engine: EncoderEngine) -> None:
        super().__init__(engine)
        self._case: Case | None = None
        self._call: Call | None = None
        self._result: Any = None

    def prepare(self, work: str, model: str, precision: str) -> dict[str, Any]:
        path = self.engine.prepare(EncoderFolder(Path(work), model), precision)
        return {"path": str(path), "bytes": bytes_of(path)}

    def load(self, path: str, precision: str, threads: int, model: str) -> dict[str, float]:
        return self.timed(lambda: self.engine.load(Path(path), model, precision, threads))

    def run(self, case: dict[str, Any], seed: int) -> float:
        """Seconds of one call; what a case is made ready for is kept for the next."""
        wanted = _case(case)
        if wanted != self._case or self._call is None:
            self._call = self.engine.ready(make_inputs(wanted, seed))
            self._case = wanted
        start = time.perf_counter()
        self._result = self._call()
        return time.perf_counter() - start

    def save(self, path: str) -> None:
        """The outputs of the latest run."""
        _save(path, self.engine.outputs(self._result))

    def peak_operations(self) -> float:
        """Of kvik: the most operations per second in its precision."""
        kvik: Any = self.engine
        found: float = kvik.peak_operations()
        return found

    def reference(
        self, work: str, cases: list[dict[str, Any]], seed: int, threads: int, paths: list[str]
    ) -> None:
        """Of onnxruntime: the outputs that all others are compared with."""
        onnxruntime: Any = self.engine
        for fields, path in zip(cases, paths, strict=True):
            case = _case(fields)
            plain = EncoderFolder(Path(work), case.model).plain
            _save(path, onnxruntime.reference(plain, threads, make_inputs(case, seed)))


def _case(fields: dict[str, Any]) -> Case:
    """JSON has lists alone."""
    shortest, longest = fields["tokens"]
    return Case(**{**fields, "tokens": (shortest, longest)})


def _save(path: str, outputs: Outputs) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **outputs)


if __name__ == "__main__":
    serve_standard_input(EncoderWorker(engine(sys.argv[1])))
