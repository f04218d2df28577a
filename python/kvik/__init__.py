"""Kvik: run plainly exported ONNX models, language models above all, on a CPU.

>>> model = kvik.load("shakespeare.onnx")
>>> model.generate("ROMEO:", max_new_tokens=200, temperature=0.8, top_k=40, seed=7)
>>> for piece in model.stream("ROMEO:"):
...     print(piece, end="", flush=True)

>>> session = kvik.InferenceSession("any.onnx")
>>> outputs = session.run(None, {"x": array})
"""

from kvik._core import version
from kvik.attention import Attention, AttentionMap, SessionAttention
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
from kvik.images import ImageFormat
from kvik.info import ModelInfo, Score, TensorInfo
from kvik.loading import load
from kvik.model import Model
from kvik.profile import OpProfile, Profile
from kvik.session import InferenceSession, NodeArg
from kvik.tasks import Answer, Classification, Filling, Tag
from kvik.tokenizer import Tokenizer
from kvik.translation import Translation

__version__ = version()

__all__ = [
    "Answer",
    "Attention",
    "AttentionMap",
    "CancelledError",
    "Classification",
    "FileError",
    "Filling",
    "ImageFormat",
    "InferenceSession",
    "InternalError",
    "InvalidArgumentError",
    "InvalidModelError",
    "KvikError",
    "Model",
    "ModelInfo",
    "NodeArg",
    "OpProfile",
    "OutOfMemoryError",
    "Profile",
    "Score",
    "SessionAttention",
    "Tag",
    "TensorInfo",
    "Tokenizer",
    "Translation",
    "UnsupportedError",
    "__version__",
    "load",
]
