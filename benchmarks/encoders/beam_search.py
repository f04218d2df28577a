"""Beam search as in a textbook, for checking: no cache, no end, one sentence at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def beam_search(
    last_logits: Callable[[Array], Array], start: int, beams: int, new_tokens: int
) -> tuple[list[int], float]:
    """The likeliest of the hypotheses that are left, without its start; its log probability.

    Args:
        last_logits: ids int64 [rows, length] -> logits [rows, vocab] of the token after the last.
    """
    targets = np.array([[start]], np.int64)  # [rows, length]
    sums = np.zeros(1)  # [rows]
    for _ in range(new_tokens):
        logits = last_logits(targets).astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        logs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        totals = sums[:, None] + logs  # [rows, vocab]
        best = np.argsort(-totals, axis=None, kind="stable")[:beams]
        rows, tokens = np.divmod(best, totals.shape[1])
        targets = np.concatenate([targets[rows], tokens[:, None]], axis=1)
        sums = totals.ravel()[best]
    return targets[0, 1:].tolist(), float(sums[0])
