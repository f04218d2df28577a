"""An n-gram language model: what a language model has to beat.

Witten-Bell smoothing (Witten and Bell 1991): with T(h) different tokens seen after a history h,

    p(w | h) = (count(h w) + T(h) p(w | h')) / (count(h) + T(h)),

where h' is h without its first token; without any history left, p is uniform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
ORDER = 3


@dataclass(frozen=True)
class _Counts:
    """How often each n-gram was seen, in order of its code."""

    codes: Ids
    counts: Ids

    def of(self, codes: Ids) -> Ids:
        if not len(self.codes):
            return np.zeros_like(codes)
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        found: Ids = np.where(self.codes[place] == codes, self.counts[place], 0)
        return found


class NGram:
    """Counts of a text; `order` is lowered where its codes would not fit in 63 bits."""

    def __init__(self, tokens: Ids, vocab_size: int, order: int = ORDER) -> None:
        while vocab_size**order >= 1 << 63:
            order -= 1
        self.vocab_size = vocab_size
        self.order = order
        self._seen: list[_Counts] = []  # of n-grams, for n = 1 to order
        self._totals: list[_Counts] = []  # of the histories, n - 1 tokens long
        self._kinds: list[_Counts] = []  # of different tokens after each history
        for n in range(1, order + 1):
            codes, counts = np.unique(self._codes(tokens, n), return_counts=True)
            histories, first = np.unique(codes // vocab_size, return_index=True)
            self._seen.append(_Counts(codes, counts))
            totals = np.add.reduceat(counts, first) if len(first) else counts
            self._totals.append(_Counts(histories, totals))
            self._kinds.append(_Counts(histories, np.diff(np.append(first, len(codes)))))

    def loss(self, windows: Ids) -> float:
        """Mean cross-entropy of windows [W, S + 1], each token given those before it: nats."""
        losses = -np.log(self.probabilities(windows))
        return float(losses.mean())

    def probabilities(self, windows: Ids) -> Values:
        """Of each token but the first, given those before it in its window: [W, S]."""
        p = np.full((len(windows), windows.shape[1] - 1), 1.0 / self.vocab_size)
        for n in range(1, self.order + 1):
            # The tokens that have n - 1 others of the window before them.
            start = max(n - 1, 1)
            codes = np.stack([self._codes(row, n) for row in windows])[:, start - (n - 1) :]
            history = codes // self.vocab_size
            total, kinds = self._totals[n - 1].of(history), self._kinds[n - 1].of(history)
            seen = self._seen[n - 1].of(codes)
            lower = p[:, start - 1 :]
            p[:, start - 1 :] = np.where(
                total > 0, (seen + kinds * lower) / np.maximum(total + kinds, 1), lower
            )
        return p

    def _codes(self, tokens: Ids, n: int) -> Ids:
        """A number for each n-gram, that of tokens i to i + n - 1 at i."""
        wide = tokens.astype(np.int64)
        count = max(0, len(wide) - n + 1)
        codes = np.zeros(count, dtype=np.int64)
        for offset in range(n):
            codes = codes * self.vocab_size + wide[offset : offset + count]
        return codes
