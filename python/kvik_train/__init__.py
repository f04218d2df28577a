"""Kvik's training package: small readable PyTorch models, data and one training loop.

The names below are loaded on first use, so that the command line can show its help without
importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvik_train.checkpoint import load_checkpoint
    from kvik_train.errors import DivergedError, TrainError
    from kvik_train.models import build_model
    from kvik_train.models.gpt import GPT, GPTConfig

_HOME = {
    "DivergedError": "kvik_train.errors",
    "GPT": "kvik_train.models.gpt",
    "GPTConfig": "kvik_train.models.gpt",
    "TrainError": "kvik_train.errors",
    "build_model": "kvik_train.models",
    "load_checkpoint": "kvik_train.checkpoint",
}

__all__ = [
    "GPT",
    "DivergedError",
    "GPTConfig",
    "TrainError",
    "build_model",
    "load_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
