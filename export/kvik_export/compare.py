"""Comparison of two engines' logits and of the tokens that they choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvik.bench.ties import is_tie
from kvik_export.engines import Engine, Ids, Logits

# The promise for float32: logits within 1e-4 of onnxruntime, absolute up to a magnitude of 1 and
# relative to the row's largest logit beyond, since rounding grows with magnitude.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """The largest difference between logits [S, V] and those of a reference."""

    error: float  # |a - b| / max(1, largest |b| of the row); inf where only one is finite
    row: int
    token: int

    @property
    def ok(self) -> bool:
        return self.error <= TOLERANCE


def difference(found: Logits, reference: Logits) -> Difference:
    if found.shape != reference.shape:
        return Difference(float("inf"), 0, 0)
    errors = scaled_error(found, reference)
    row, token = np.unravel_index(int(np.argmax(errors)), errors.shape)
    return Difference(float(errors[row, token]), int(row), int(token))


def scaled_error(
    found: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """|a - b| / max(1, max |b|) over the last axis; 0 where both are the same inf or both NaN."""
    a, b = found.astype(np.float64), reference.astype(np.float64)
    finite = np.where(np.isfinite(b), np.abs(b), 0.0)
    scale = np.maximum(1.0, finite.max(axis=-1, keepdims=True, initial=0.0)) if b.ndim else 1.0
    with np.errstate(invalid="ignore"):
        errors = np.abs(a - b) / scale
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isfinite(a) & np.isfinite(b), errors, np.inf))


@dataclass(frozen=True)
class GreedyResult:
    """How far two engines choose the same tokens."""

    steps: int  # tokens chosen by the engine under test
    ties: int  # steps at which they differ and the reference's logits nearly tie
    mismatch: int | None  # the first step at which they differ and do not tie
    gap: float  # there: by how much the reference prefers its own token

    @property
    def ok(self) -> bool:
        return self.mismatch is None


def compare_greedy(
    tokens: Ids, prompt: Ids, reference: Engine, *, rows_are_prefixes: bool
) -> GreedyResult:
    """Whether `tokens`, chosen greedily after `prompt`, are those that the reference would choose.

    Each step is judged given the tokens before it, so that one tie does not hide what follows. A
    model whose rows depend on earlier tokens alone (`rows_are_prefixes`, which has been checked)
    gives the logits of all steps in one run; any other one is run anew for each step.
    """
    sequence = [*prompt, *tokens]
    first = len(prompt) - 1
    if not tokens:
        return GreedyResult(0, 0, None, 0.0)
    if rows_are_prefixes:
        logits = reference(sequence[:-1])[first:]
    else:
        logits = np.stack(
            [reference(sequence[: first + 1 + step])[-1] for step in range(len(tokens))]
        )
    ties = 0
    for step, token in enumerate(tokens):
        gap = float(logits[step].max() - logits[step, token])
        if int(np.argmax(logits[step])) == token:
            continue
        if not is_tie(gap):
            return GreedyResult(len(tokens), ties, step, gap)
        ties += 1
    return GreedyResult(len(tokens), ties, None, 0.0)
