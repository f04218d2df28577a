"""What goes into a model: a function of the case and a seed, the same in every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.encoders.plan import Case

START = 1  # with which every target begins
FIRST_WORD = 4  # ids below stand for the start, the end and the like
VOCAB = {"bert-base": 30522, "transformer-base": 37000}
IMAGE = (3, 224, 224)  # channels, height, width
LABELS = 1000  # of images

Feeds: TypeAlias = "dict[str, npt.NDArray[Any]]"  # by the names of the plain file's inputs


@dataclass(frozen=True)
class Sentences:
    """To be translated: token ids, without a frame of special tokens."""

    sources: list[list[int]]
    beams: int
    new_tokens: int


Inputs: TypeAlias = "Feeds | Sentences"


def make_inputs(case: Case, seed: int) -> Inputs:
    """What a model of whole inputs is fed, or sentences to be translated.

    Of texts input_ids, attention_mask and token_type_ids, int64 [batch, tokens]; of images image,
    float32 [batch, channels, height, width].
    """
    rng = np.random.default_rng(seed)
    if case.model == "vit-b16":
        return {"image": rng.standard_normal((case.batch, *IMAGE), dtype=np.float32)}
    words = (FIRST_WORD, VOCAB[case.model])
    if case.beams:
        lengths = rng.permutation(np.linspace(*case.tokens, case.batch).round().astype(int))
        sources = [rng.integers(*words, length).tolist() for length in lengths]
        return Sentences(sources, case.beams, case.new_tokens)
    ids = rng.integers(*words, (case.batch, case.tokens[1]))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
