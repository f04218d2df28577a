"""Runs models with several threads and batches; prints what differed.

    python session_worker.py '[{"path": ..., "input": ..., "shape": [batch, ...]}, ...]'
                                                  with KVIK_ISA set by the caller

One JSON line for each model: {"path", "isa", "different": [way...]}.
"""

from __future__ import annotations

import json
import sys

import numpy as np

import kvik
from kvik import _core

THREADS = (1, 2, 3)


def check(path: str, name: str, shape: list[int]) -> dict[str, object]:
    x = np.random.default_rng(13).standard_normal(shape).astype(np.float32)
    expected: list[np.ndarray] = []
    different = []
    for threads in THREADS:
        session = kvik.InferenceSession(path, threads=threads)
        found = session.run(None, {name: x})
        expected = expected or found
        if any(a.tobytes() != b.tobytes() for a, b in zip(found, expected, strict=True)):
            different.append(f"threads {threads}")
        for index in range(shape[0]):
            alone = session.run(None, {name: x[index : index + 1]})
            rows = [whole[index : index + 1] for whole in expected]
            if any(a.tobytes() != b.tobytes() for a, b in zip(alone, rows, strict=True)):
                different.append(f"threads {threads}, image {index} alone")
    return {"path": path, "isa": _core.active_isa(), "different": different}


if __name__ == "__main__":
    for job in json.loads(sys.argv[1]):
        print(json.dumps(check(job["path"], job["input"], job["shape"])), flush=True)
