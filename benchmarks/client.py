"""The other end of a worker's pipe."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class EngineError(Exception):
    """The engine did not do it. `status` is "crashed", "timed out", "unsupported" or "failed"."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class Client:
    """An engine in its own process; a context manager.

    Args:
        module: the worker's, which this interpreter runs.
        command: what starts the worker in its place.
        log: where the worker's standard error goes.
    """

    def __init__(
        self,
        engine: str,
        *,
        log: Path,
        threads: int,
        timeout_seconds: float,
        module: str = "benchmarks.worker",
        command: Sequence[str] | None = None,
    ) -> None:
        self.engine = engine
        self._timeout = timeout_seconds
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command or [sys.executable, "-m", module, engine],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(threads),
                cwd=Path(__file__).parents[1],
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> Any:
        """The worker's result. Raises EngineError."""
        line = json.dumps({"do": do, "with": arguments}) + "\n"
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has crashed: the empty answer says so
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        answer: Mapping[str, Any] = json.loads(self._read_line())
        if "ok" in answer:
            return answer["ok"]
        if "unsupported" in answer:
            raise EngineError("unsupported", answer["unsupported"])
        raise EngineError("failed", answer["error"])

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._timeout)
        if not ready:
            self._process.kill()
            raise EngineError("timed out", f"no answer within {self._timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EngineError("crashed", describe_exit(self._process.wait(), self._log))
        return line

    def close(self) -> None:
        """Ends the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def describe_exit(status: int, log: Path) -> str:
    """Why a process ended: the signal's name, or its status and the last line that it wrote."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return f"exit status {status}" + (f": {lines[-1][:200]}" if lines else "")


def _environment(threads: int) -> dict[str, str]:
    """Thread counts for libraries that read them at start, and no network."""
    count = str(threads)
    return {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
