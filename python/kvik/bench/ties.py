"""When two engines may choose different tokens: where the last bits of the logits decide."""

from __future__ import annotations

__all__ = ["CLOSE_LOGITS", "is_tie"]

# Engines that compute the same round differently, by up to 1e-4 of a logit; ten times that.
CLOSE_LOGITS = 1e-3


def is_tie(gap: float) -> bool:
    """Whether logits that differ by `gap` are as good as equal; NaN is not."""
    return gap < CLOSE_LOGITS
