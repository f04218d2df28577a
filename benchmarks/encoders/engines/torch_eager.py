"""PyTorch on the checkpoint, without compilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.encoders.engines.base import (
    Call,
    EncoderEngine,
    Outputs,
    feeds_of,
    refuse_translation,
)
from benchmarks.encoders.inputs import Inputs
from benchmarks.encoders.models import EncoderFolder, load_module


class TorchEncoder(EncoderEngine):
    name = "torch"
    module = "torch"
    distribution = "torch"
    precisions = ("f32", "bf16")
    setting = "eager, scaled-dot-product attention, inference mode"

    def prepare(self, work: EncoderFolder, precision: str) -> Path:
        refuse_translation(work.model)
        return work.checkpoint

    def load(self, path: Path, model: str, precision: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self._dtype = torch.float32 if precision == "f32" else torch.bfloat16
        self._module: Any = load_module(model, path).to(self._dtype)

    def ready(self, inputs: Inputs) -> Call:
        import torch

        tensors = [torch.from_numpy(array) for array in feeds_of(inputs).values()]
        given = [each.to(self._dtype) if each.is_floating_point() else each for each in tensors]

        def call() -> Any:
            with torch.inference_mode():
                return self._module(*given)

        return call

    def outputs(self, result: Any) -> Outputs:
        return {"output": result.float().numpy()}
