"""Were the outputs right: compared with onnxruntime's in f32 on the plain file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.encoders.engines.base import Outputs

# Sums in another order, through twelve layers, come to about 1e-6 of the largest output; a wrong
# mask or a missing bias to more than 1e-2.
LARGEST_ERROR = 1e-3


@dataclass(frozen=True)
class OutputCheck:
    """How far outputs are from the reference's. A translation has no cosine, the others no count.

    An error is relative to the largest output; of translations it is that of their log
    probabilities, relative to the reference's.
    """

    error: float
    cosine: float | None = None  # of all outputs, as one vector
    same: int | None = None  # translations with the reference's tokens
    compared: int = 0

    def wrong(self) -> str:
        """Why it is no result of f32; empty where it is one.

        Beam search may choose otherwise at a tie, which hardly changes how likely the result is;
        with most translations otherwise, the model is another one.
        """
        if not self.error <= LARGEST_ERROR:  # NaN too
            return f"outputs are {self.error:.1e} off"
        if self.same is not None and 2 * self.same < self.compared:
            return f"{self.compared - self.same} of {self.compared} translations differ"
        return ""

    def describe(self, precision: str) -> str:
        if self.same is not None:
            return f"{self.same} of {self.compared} the same, scores {self.error:.0e} off"
        if precision == "f32" or self.cosine is None:
            return f"error {self.error:.0e}"
        return f"cosine {self.cosine:.4f}"


def compare(found: Outputs, reference: Outputs) -> OutputCheck:
    """Of translations as many as the reference has: it may have the first alone."""
    if "tokens" in reference:
        count = len(reference["tokens"])
        tokens, values = found["tokens"][:count], found["log_probabilities"][:count]
        same = [np.array_equal(*pair) for pair in zip(tokens, reference["tokens"], strict=True)]
        expected = reference["log_probabilities"]
        error = float(np.abs((values - expected) / expected).max())
        return OutputCheck(error, None, sum(same), count)
    own, other = (x["output"].astype(np.float64) for x in (found, reference))
    if own.shape != other.shape:
        return OutputCheck(float("inf"), 0.0)
    lengths = np.linalg.norm(own) * np.linalg.norm(other)
    return OutputCheck(
        float(np.abs(own - other).max() / np.abs(other).max()), float((own * other).sum() / lengths)
    )
