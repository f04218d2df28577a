"""onnxruntime on the same file: without a cache it computes the whole sequence for every token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import Generated, Peer, step_by_step
from benchmarks.workspace import Workspace


def session(path: Path, threads: int) -> Any:
    """On the CPU, all optimisations, quiet."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantize_int8(plain: Path, path: Path) -> None:
    """Weights by output channel, activations at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        plain,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )


class OnnxRuntimePeer(Peer):
    name = "onnxruntime"
    module = "onnxruntime"
    distribution = "onnxruntime"
    precisions = ("f32",)
    setting = "the plain export, recomputed for every token"
    recomputes = True

    def prepare(self, work: Workspace, precision: str) -> Path:
        return work.plain

    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        self._session = session(path, threads)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        ids = np.asarray(prompts, dtype=np.int64)

        def step(last: list[int]) -> list[int]:
            nonlocal ids
            if last:
                ids = np.concatenate([ids, np.asarray(last, dtype=np.int64)[:, None]], axis=1)
            found: list[int] = self._last_logits(ids).argmax(-1).tolist()
            return found

        return step_by_step(lambda: step([]), step, new_tokens)

    def _last_logits(self, ids: Any) -> Any:
        (logits,) = self._session.run(["logits"], {"ids": ids})
        return logits[:, -1]

    def gap(self, ids: Sequence[int], first: int, second: int) -> float:
        row = self._last_logits(np.asarray([ids], dtype=np.int64))[0]
        return float(row[first] - row[second])
