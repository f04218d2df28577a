"""What there is to know about a loaded model, and about the score of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from kvik import _core

__all__ = ["ModelInfo", "Score", "TensorInfo"]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph.

    ``dtype`` is numpy's name of the element type. ``shape`` holds sizes, names of symbolic
    dimensions, or None where nothing is known; it is None when not even the rank is.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        dims = (
            "?"
            if self.shape is None
            else ", ".join(str(d) if d is not None else "?" for d in self.shape)
        )
        return f"{self.name}: {self.dtype} [{dims}]"


@dataclass(frozen=True)
class ModelInfo:
    """Figures of a loaded model. Sizes are in bytes."""

    producer: str
    ir_version: int
    opsets: Mapping[str, int]  # by domain, "" for ONNX
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: int  # elements of the weights in the file
    weight_bytes: int  # the same, as stored
    packed_bytes: int  # weights packed for this CPU, and other constants, in memory
    activation_bytes: int  # for the most rows that are computed at once
    # Keys and values, and states of recurrent layers, that one token adds to a sequence.
    state_bytes_per_position: int
    recurrent_bytes_per_position: int  # of these, the states; a token reads the last alone
    ops_before: Mapping[str, int]  # operators of the graph in the file, most frequent first
    ops_after: Mapping[str, int]  # of the graph that runs
    weights: str  # precision of the linear layers in memory: "f32", "bf16", "int8" or "int4"
    # Precision of the keys and values: "f32", "bf16" or "int8". States are always float32.
    cache: str
    incremental: bool  # each token is computed once; else the whole sequence for each new token
    vocab_size: int
    reads_types: bool  # of a model that reads whole texts: token_type_ids matter
    # What a model that reads whole texts, or images, gives for each: elements of a row, by output.
    encoded: Mapping[str, int]
    encoded_per_token: bool  # a row for every token; else one for each text or image
    context_length: int | None  # positions that a sequence may have; None: no limit
    threads: int
    isa: str  # kernels in use, e.g. "avx512"
    metadata: Mapping[str, str]  # the file's metadata_props; Kvik's own keys begin with "kvik."

    @property
    def memory_bytes(self) -> int:
        """Weights and activations in memory, without the state of sequences."""
        return self.packed_bytes + self.activation_bytes

    @property
    def provenance(self) -> dict[str, str]:
        """What the file says about where it comes from: the kvik.* metadata but the tokenizer."""
        return {
            key.removeprefix("kvik."): value
            for key, value in self.metadata.items()
            if key.startswith("kvik.") and key != "kvik.tokenizer"
        }


@dataclass(frozen=True)
class Score:
    """Log-probabilities (natural logarithm) of the tokens of a text, each given those before it."""

    ids: list[int]
    tokens: list[str]  # the vocabulary's spelling of each id
    logprobs: npt.NDArray[np.float64]  # [len(ids)]; NaN for the first, which nothing precedes

    @property
    def total(self) -> float:
        """Log-probability of all tokens but the first, given the first."""
        return float(self.logprobs[1:].sum())

    @property
    def perplexity(self) -> float:
        """exp(-total / number of tokens that were predicted)."""
        mean = -self.total / (len(self.ids) - 1)
        return math.exp(mean) if mean < 700 else math.inf


def tensor_info(core: _core.TensorInfo) -> TensorInfo:
    shape = core.shape
    return TensorInfo(core.name, core.dtype, None if shape is None else tuple(shape))


def model_info(core: _core.Model) -> ModelInfo:
    """The engine's figures as a plain record."""
    info = core.info
    return ModelInfo(
        producer=info.producer,
        ir_version=info.ir_version,
        opsets=dict(info.opsets),
        inputs=tuple(map(tensor_info, info.inputs)),
        outputs=tuple(map(tensor_info, info.outputs)),
        parameters=info.parameters,
        weight_bytes=info.weight_bytes,
        packed_bytes=info.packed_bytes,
        activation_bytes=info.activation_bytes,
        state_bytes_per_position=info.state_bytes_per_position,
        recurrent_bytes_per_position=info.recurrent_bytes_per_position,
        ops_before=dict(info.ops_before),
        ops_after=dict(info.ops_after),
        weights=info.weights,
        cache=info.cache,
        incremental=info.incremental,
        vocab_size=info.vocab_size,
        reads_types=info.reads_types,
        encoded=dict(info.encoded),
        encoded_per_token=info.encoded_per_token,
        context_length=info.context_length or None,
        threads=info.threads,
        isa=info.isa,
        metadata=core.metadata,
    )
