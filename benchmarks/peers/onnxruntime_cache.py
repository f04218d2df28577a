"""onnxruntime on an export with past keys and values, bound without copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import Generated, Peer, step_by_step
from benchmarks.peers.onnxruntime_plain import quantize_int8, session
from benchmarks.workspace import Workspace


class OnnxRuntimeCachePeer(Peer):
    name = "onnxruntime-cache"
    module = "onnxruntime"
    distribution = "onnxruntime"
    precisions = ("f32", "int8", "int4")
    setting = "an export with past keys and values, IO binding; int8 dynamic, int4 MatMulNBits"

    def prepare(self, work: Workspace, precision: str) -> Path:
        def export(folder: Path) -> None:
            from benchmarks.peers.cached import export_cached

            export_cached(work.checkpoint, work.config, folder / "model.onnx")

        plain = work.make("onnx-cache", export) / "model.onnx"
        if precision == "f32":
            return plain
        quantize = quantize_int8 if precision == "int8" else _int4
        name = f"onnx-cache-{precision}"
        return work.make(name, lambda folder: quantize(plain, folder / "model.onnx")) / "model.onnx"

    def load(self, path: Path, precision: str, threads: int, positions: int) -> None:
        self._session = session(path, threads)
        inputs = self._session.get_inputs()[1:]
        self._pasts = [item.name for item in inputs]
        self._shape = (inputs[0].shape[1], inputs[0].shape[3])
        self._outputs = [item.name for item in self._session.get_outputs()]

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generated:
        import onnxruntime

        heads, size = self._shape
        empty = np.zeros((len(prompts), heads, 0, size), dtype=np.float32)
        cache: list[Any] = [onnxruntime.OrtValue.ortvalue_from_numpy(empty) for _ in self._pasts]

        def run(ids: Any) -> list[int]:
            nonlocal cache
            binding = self._session.io_binding()
            binding.bind_cpu_input("ids", ids)
            for name, value in zip(self._pasts, cache, strict=True):
                binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            logits, *cache = binding.get_outputs()
            found: list[int] = logits.numpy()[:, -1].argmax(-1).tolist()
            return found

        return step_by_step(
            lambda: run(np.asarray(prompts, dtype=np.int64)),
            lambda last: run(np.asarray(last, dtype=np.int64)[:, None]),
            new_tokens,
        )


def _int4(plain: Path, path: Path) -> None:
    """Groups of 32; products in 8-bit integers (accuracy level 4), the fastest on CPUs."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(plain), bits=4, block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=True)
