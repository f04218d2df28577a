"""From PyTorch to one plain ONNX file, and the check that every engine computes the same from it.

    export_checkpoint("runs/char-tiny", "model.onnx")
    verify_model("model.onnx", checkpoint="runs/char-tiny").ok
    quantize_model("model.onnx", "small.onnx", weights="int8")

The names below are loaded on first use, so that the command line shows its help without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kvik_export.errors import ExportError

if TYPE_CHECKING:
    from kvik_export.exporter import ExportResult, export_checkpoint, export_module
    from kvik_export.quantize import QuantizeResult, quantize_model
    from kvik_export.verify import Verification, verify_model

_HOME = {
    "ExportResult": "kvik_export.exporter",
    "QuantizeResult": "kvik_export.quantize",
    "Verification": "kvik_export.verify",
    "export_checkpoint": "kvik_export.exporter",
    "export_module": "kvik_export.exporter",
    "quantize_model": "kvik_export.quantize",
    "verify_model": "kvik_export.verify",
}

__all__ = [
    "ExportError",
    "ExportResult",
    "QuantizeResult",
    "Verification",
    "export_checkpoint",
    "export_module",
    "quantize_model",
    "verify_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
