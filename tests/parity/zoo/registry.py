"""What a case of the zoo is: one model file, how it is made, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Longest sequence of the models: over two blocks of cached positions (64 each) and a part.
CONTEXT = 160


@dataclass(frozen=True)
class Case:
    """One model. `build(path)` writes the ONNX file; weights depend on the name alone."""

    name: str
    build: Callable[[Path], None]
    vocab: int = 97
    context: int = CONTEXT  # longest sequence that the model accepts, or that is tried
    incremental: bool = True  # whether each row depends on its prefix alone
    proved: bool = True  # whether the engine proves it; False also for a limit of the proof
    stop: str = ""  # for a refusal: the op type at which the proof has to stop
    tokens: str = "ids"  # the name of the token input


def seed_of(name: str) -> int:
    """A seed that depends on the name only, so that adding a case changes no other model."""
    seed = 2166136261  # FNV-1a
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) % 2**32
    return seed
