"""torch.onnx.export of a module that maps ids [B, S] to logits [B, S, V], as users call it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn


class PlainForward(nn.Module):
    """A transformers model as ids [B, S] -> logits [B, S, V]: no mask, no positions, no cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporter's progress and warnings; errors pass."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def example_ids(vocab: int) -> torch.Tensor:
    """ids [2, 7]: neither size is 0 or 1, which the exporter would take for constants."""
    return torch.arange(14).reshape(2, 7) % vocab


def export_dynamo(module: nn.Module, path: Path, *, vocab: int, opset: int) -> None:
    with quiet(), torch.no_grad():
        torch.onnx.export(
            module.eval(),
            (example_ids(vocab),),
            path,
            dynamo=True,
            opset_version=opset,
            input_names=["ids"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")},),
            external_data=False,
        )


def export_torchscript(module: nn.Module, path: Path, *, vocab: int, opset: int) -> None:
    """The exporter before dynamo, with which most files in circulation were made."""
    with quiet(), torch.no_grad():
        torch.onnx.export(
            module.eval(),
            (example_ids(vocab),),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["ids"],
            output_names=["logits"],
            dynamic_axes={
                "ids": {0: "batch", 1: "sequence"},
                "logits": {0: "batch", 1: "sequence"},
            },
        )
