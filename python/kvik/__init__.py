"""Kvik: run plainly exported ONNX language models on a CPU."""

from kvik._core import version
from kvik.errors import (
    CancelledError,
    FileError,
    InternalError,
    InvalidArgumentError,
    InvalidModelError,
    KvikError,
    OutOfMemoryError,
    UnsupportedError,
)

__version__ = version()

__all__ = [
    "CancelledError",
    "FileError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidModelError",
    "KvikError",
    "OutOfMemoryError",
    "UnsupportedError",
    "__version__",
]
