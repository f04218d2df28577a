"""The engines by name. Importing this imports none of them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.peers.base import Engine, Peer

# name: module and class. The order is that of the tables.
_PEERS = {
    "kvik": ("kvik_engine", "KvikPeer"),
    "onnxruntime": ("onnxruntime_plain", "OnnxRuntimePeer"),
    "onnxruntime-cache": ("onnxruntime_cache", "OnnxRuntimeCachePeer"),
    "transformers": ("transformers_eager", "TransformersPeer"),
    "ctranslate2": ("ctranslate2_engine", "CTranslate2Peer"),
    "onnxruntime-genai": ("genai", "GenAiPeer"),
    "openvino": ("openvino_engine", "OpenVinoPeer"),
    "llama.cpp": ("llama_cpp_engine", "LlamaCppPeer"),
}
PEERS = tuple(name for name in _PEERS if name != "kvik")


def peer(name: str) -> Peer:
    """A new instance; nothing is loaded yet. Raises KeyError."""
    module, cls = _PEERS[name]
    made: Peer = getattr(import_module(f"benchmarks.peers.{module}"), cls)()
    return made


def installed_version(engine: Engine) -> str | None:
    """Of its package; None when it is not installed."""
    if find_spec(engine.module) is None:
        return None
    try:
        return version(engine.distribution)
    except PackageNotFoundError:
        return "unknown"
