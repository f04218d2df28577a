"""Computes one prompt's logits in every way that must not matter; prints what differed.

    python bitwise_worker.py MODEL.onnx...        with KVIK_ISA set by the caller,
                                                  and KVIK_TEST_WEIGHTS and KVIK_TEST_CACHE for
                                                  other precisions than f32

One JSON line for each model: {"model", "isa", "weights", "cache", "sha256", "ways",
"different": [way...]}.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator

import numpy as np

import kvik
from kvik import _core

PRECISION = {
    "weights": os.environ.get("KVIK_TEST_WEIGHTS", "f32"),
    "cache": os.environ.get("KVIK_TEST_CACHE", "f32"),
}
THREADS = (1, 2, 3)
BATCHES = (1, 2, 7)
CHUNKS = (1, 5, 64, None)
BLOCK = 64  # positions of a block of cached keys and values
LENGTH = 150  # into the third block, and no multiple of a chunk of 64
assert LENGTH > 2 * BLOCK


def ways(path: str, ids: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Logits [LENGTH, V] of ids, each with a description of how they were computed."""
    for threads in THREADS:
        model = kvik.load(path, threads=threads, **PRECISION)
        for chunk in CHUNKS:
            for batch in BATCHES:
                rows = in_batch(model._core, ids, batch, chunk or LENGTH, model.info.vocab_size)
                yield f"threads {threads}, chunk {chunk}, batch {batch}", rows
        yield f"threads {threads}, without the cache", model.logits(ids, cache=False)


def in_batch(core: _core.Model, ids: list[int], batch: int, chunk: int, vocab: int) -> np.ndarray:
    """The logits of ids as the middle one of `batch` sequences of different lengths."""
    generator = np.random.default_rng(batch)
    place = batch // 2
    others = [generator.integers(0, vocab, 3 + 8 * index).tolist() for index in range(batch)]
    prompts = [ids if index == place else others[index] for index in range(batch)]
    sequences = [core.new_sequence() for _ in prompts]
    found = []
    for begin in range(0, len(ids), chunk):
        steps, before, rows = [], 0, 0
        for index, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
            part = np.asarray(prompt[begin : begin + chunk], dtype=np.int64)
            if not len(part):
                continue
            steps.append((sequence, part, _core.Logits.ALL))
            if index < place:
                before += len(part)
            elif index == place:
                rows = len(part)
        found.append(core.forward(steps)[before : before + rows])
    return np.concatenate(found)


def check(path: str) -> dict[str, object]:
    vocab = kvik.load(path, threads=1).info.vocab_size
    ids = np.random.default_rng(11).integers(0, vocab, LENGTH).tolist()
    expected, count, different = b"", 0, []
    for way, logits in ways(path, ids):
        data = np.ascontiguousarray(logits).tobytes()
        expected = expected or data
        count += 1
        if data != expected or logits.shape != (LENGTH, vocab):
            different.append(way)
    digest = hashlib.sha256(expected).hexdigest()
    info = kvik.load(path, **PRECISION).info
    return {
        "model": path,
        "isa": info.isa,
        "weights": info.weights,
        "cache": info.cache,
        "sha256": digest,
        "ways": count,
        "different": different,
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(check(argument)), flush=True)
