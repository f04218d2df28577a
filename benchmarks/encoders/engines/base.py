"""What the benchmark asks of an engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.encoders.inputs import Inputs, Sentences
from benchmarks.encoders.models import EncoderFolder
from benchmarks.peers.base import Engine, UnsupportedCaseError

# Of a model of whole inputs "output", float32 of any shape. Of a translation "tokens",
# int64 [sentences, new_tokens], and "log_probabilities", float64 [sentences], of the best ones.
Outputs: TypeAlias = "dict[str, npt.NDArray[Any]]"
Call: TypeAlias = "Callable[[], Any]"


class EncoderEngine(Engine):
    """One engine with one model, in a process of its own."""

    @abstractmethod
    def prepare(self, work: EncoderFolder, precision: str) -> Path:
        """Converts the model, or finds what was converted before: what load() takes.

        Raises UnsupportedCaseError.
        """

    @abstractmethod
    def load(self, path: Path, model: str, precision: str, threads: int) -> None:
        """Makes ready for inputs of any size. Raises UnsupportedCaseError."""

    @abstractmethod
    def ready(self, inputs: Inputs) -> Call:
        """What computes the outputs of these inputs, in the form that the engine takes already.

        Raises UnsupportedCaseError.
        """

    def outputs(self, result: Any) -> Outputs:
        """What a call of ready() returned, as arrays; not a part of what is measured."""
        return {"output": np.asarray(result)}


def refuse_translation(model: str) -> None:
    """For engines that run a plain file as it stands."""
    if model == "transformer-base":
        raise UnsupportedCaseError("no beam search with a cache on a plain file")


def feeds_of(inputs: Inputs) -> dict[str, npt.NDArray[Any]]:
    assert not isinstance(inputs, Sentences)  # prepare() has refused the model
    return inputs


def translations(best: list[tuple[list[int], float]]) -> Outputs:
    """Of the best tokens of each sentence and their log probability."""
    return {
        "tokens": np.array([tokens for tokens, _ in best], np.int64),
        "log_probabilities": np.array([value for _, value in best], np.float64),
    }
