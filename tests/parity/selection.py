"""Which models a test runs on, and onnxruntime as the engine that recomputes everything."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from parity.zoo import all_cases

# KVIK_TEST_ZOO=wide adds every architecture at every opset, which takes half an hour to export.
CASES = all_cases(wide=os.environ.get("KVIK_TEST_ZOO") == "wide")
POSITIVE = [case for case in CASES if case.incremental]
NEGATIVE = [case for case in CASES if not case.incremental]

each_positive = pytest.mark.parametrize("case", POSITIVE, ids=lambda case: case.name)
each_negative = pytest.mark.parametrize("case", NEGATIVE, ids=lambda case: case.name)


class Recomputation:
    """onnxruntime on the file as it stands: the whole sequence at every step."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, batch: object) -> np.ndarray:
        """ids [B, S] -> logits float32 [B, S, V]."""
        return self.session.run(["logits"], {"ids": np.asarray(batch, dtype=np.int64)})[0]

    def prefixes(self, ids: object) -> np.ndarray:
        """Row i is the last row of a run over ids[:i + 1]: [S, V]."""
        ids = list(ids)
        return np.stack([self([ids[: end + 1]])[0, -1] for end in range(len(ids))])


def takes_batches(path: Path) -> bool:
    """Whether onnxruntime runs the file on more than one sequence.

    At opset 23 torch writes RotaryEmbedding with caches [1, S, D/2] for an x [B, H, S, D]. The
    operator wants caches [B, S, D/2], and onnxruntime insists on it.
    """
    graph = onnx.load(path, load_external_data=False).graph
    return all(node.op_type != "RotaryEmbedding" for node in graph.node)


def assert_logits_close(found: np.ndarray, expected: np.ndarray, *, context: str = "") -> None:
    """Within 1e-4, relative to the row's largest logit where that exceeds 1."""
    assert found.shape == expected.shape
    assert np.isfinite(expected).all(), "the reference itself is not finite"
    scale = np.maximum(1.0, np.abs(expected).max(axis=-1, keepdims=True))
    error = np.abs(found.astype(np.float64) - expected) / scale
    worst = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
    assert error[worst] <= 1e-4, (
        f"{context} at {tuple(map(int, worst))}: {found[worst]} against {expected[worst]}"
    )


def random_ids(seed: int, vocab: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, length).tolist()
