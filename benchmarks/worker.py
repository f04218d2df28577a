"""One engine in a process of its own: its memory, its threads, and its crashes are its own.

As a program: ``python -m benchmarks.worker ENGINE``. Reads one command a line from standard input,
as JSON, and answers each with one line of JSON: {"ok": result}, or {"unsupported": why}, or
{"error": why}. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.peers import peer
from benchmarks.peers.base import Engine, Peer, UnsupportedCaseError
from benchmarks.workspace import Workspace, bytes_of


class EngineWorker:
    """The commands that every benchmark has."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def isa(self) -> str:
        return self.engine.isa()

    def peak(self) -> int:
        from kvik.bench.memory import peak_bytes

        return peak_bytes()

    def timed(self, load: Callable[[], None]) -> dict[str, float]:
        import_module(self.engine.module)  # an import is not part of loading a model
        start = time.perf_counter()
        load()
        return {"seconds": time.perf_counter() - start}


class Worker(EngineWorker):
    """The commands to an engine that generates text."""

    engine: Peer

    def prepare(self, work: str, model: str, precision: str) -> dict[str, Any]:
        path = self.engine.prepare(Workspace(Path(work), model), precision)
        return {"path": str(path), "bytes": bytes_of(path)}

    def load(self, path: str, precision: str, threads: int, positions: int) -> dict[str, float]:
        return self.timed(lambda: self.engine.load(Path(path), precision, threads, positions))

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        return asdict(self.engine.generate(prompts, new_tokens))

    def gap(self, ids: list[int], first: int, second: int) -> float:
        return self.engine.gap(ids, first, second)

    def roofline(self, mean_position: float) -> dict[str, float]:
        engine: Any = self.engine
        found: dict[str, float] = engine.roofline(mean_position)
        return found


def serve(worker: EngineWorker, commands: Any, answer: Callable[[str], None]) -> None:
    for line in commands:
        command = json.loads(line)
        try:
            result = {"ok": getattr(worker, command["do"])(**command["with"])}
        except UnsupportedCaseError as error:
            result = {"unsupported": str(error)}
        except Exception as error:  # another engine's: whatever it is, the run goes on
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answer(json.dumps(result))


def serve_standard_input(worker: EngineWorker) -> None:
    """Until it ends. What libraries print to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(line: str) -> None:
        print(line, file=answers, flush=True)

    serve(worker, sys.stdin, answer)


if __name__ == "__main__":
    serve_standard_input(Worker(peer(sys.argv[1])))
