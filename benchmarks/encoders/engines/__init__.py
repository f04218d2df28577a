"""The engines by name. Importing this imports none of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.encoders.engines.base import EncoderEngine

# name: module and class. The order is that of the tables.
_ENGINES = {
    "kvik": ("kvik_engine", "KvikEncoder"),
    "onnxruntime": ("onnxruntime_engine", "OnnxRuntimeEncoder"),
    "openvino": ("openvino_engine", "OpenVinoEncoder"),
    "torch": ("torch_eager", "TorchEncoder"),
    "ctranslate2": ("ctranslate2_engine", "CTranslate2Translator"),
}
PEERS = tuple(name for name in _ENGINES if name != "kvik")


def engine(name: str) -> EncoderEngine:
    """A new instance; nothing is loaded yet. Raises KeyError."""
    module, cls = _ENGINES[name]
    made: EncoderEngine = getattr(import_module(f"benchmarks.encoders.engines.{module}"), cls)()
    return made
