"""Load time and peak memory of one engine, measured in a process of its own.

As a program: ``python -m kvik.bench.memory ENGINE MODEL THREADS WEIGHTS PROMPT_TOKENS NEW_TOKENS``
prints one line of JSON. Peak memory is the resident set of the whole process, Python included;
what the process had before the engine was imported is reported beside it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvik.errors import KvikError

if TYPE_CHECKING:
    from kvik.arguments import CacheType, WeightType

__all__ = ["Footprint", "measure_footprint", "peak_bytes"]


@dataclass(frozen=True)
class Footprint:
    """Figures of one fresh process."""

    load_seconds: float
    base_bytes: int  # resident before the engine was imported: Python and numpy
    peak_bytes: int  # after load, prefill and decode


def measure_footprint(
    engine: str,
    model: Path,
    threads: int,
    weights: str,
    cache: str,
    prompt_tokens: int,
    new_tokens: int,
) -> Footprint:
    """Load, prefill and decode in a fresh process.

    Raises:
        KvikError: the process failed; the message is the last line that it wrote.
    """
    command = [sys.executable, "-m", "kvik.bench.memory", engine, str(model)]
    command += [str(threads), weights, cache, str(prompt_tokens), str(new_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise KvikError(f"measuring the memory of {engine} failed: {lines[-1]}")
    return Footprint(**json.loads(done.stdout.strip().splitlines()[-1]))


def peak_bytes() -> int:
    """Largest resident set of this process so far.

    Linux's ru_maxrss also counts what the parent had when it started this process; VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes


def _main(
    engine: str,
    model: str,
    threads: str,
    weights: WeightType,
    cache: CacheType,
    prompt_tokens: str,
    new_tokens: str,
) -> None:
    from kvik.bench.engines import open_engine

    if engine != "kvik":
        __import__(engine)  # an installed package's import is not part of loading a model
    base = peak_bytes()
    start = time.perf_counter()
    loaded = open_engine(engine, Path(model), int(threads), weights, cache)
    seconds = time.perf_counter() - start
    prompt = np.zeros(int(prompt_tokens), dtype=np.int64)
    loaded.decode(prompt, int(new_tokens))
    figures = {"load_seconds": seconds, "base_bytes": base, "peak_bytes": peak_bytes()}
    print(json.dumps(figures))


if __name__ == "__main__":
    _main(*sys.argv[1:])  # type: ignore[arg-type]
