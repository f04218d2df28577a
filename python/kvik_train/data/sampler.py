"""Which windows of the corpus a training step sees.

The answer is a pure function of (seed, step): there is no iterator whose state would have to be
saved, a resumed run sees what an uninterrupted one would have seen, and how a batch is cut among
processes and accumulation steps does not change what is in it.
"""

from __future__ import annotations

import numpy as np

_MASK64 = (1 << 64) - 1


def window_starts(seed: int, step: int, batch_size: int, start_count: int) -> list[int]:
    """Starts of one step's windows, each drawn uniformly from range(start_count).

    Philox is counter-based: (seed, step) names a stream of its own, and its raw output is the same
    in every version of numpy. The bias of the remainder is below start_count / 2^64.
    """
    bits = np.random.Philox(key=seed & _MASK64, counter=[0, 0, 0, step])
    raw = bits.random_raw(batch_size)
    return [int(value) for value in raw % np.uint64(start_count)]


def evaluation_starts(count: int, start_count: int) -> list[int]:
    """At most `count` starts, evenly spaced over range(start_count)."""
    count = min(count, start_count)
    if count == 1:
        return [0]
    return [index * (start_count - 1) // (count - 1) for index in range(count)]


def dropout_seed(seed: int, step: int, part: int, rank: int) -> int:
    """A seed for torch's generator, of its own for every forward pass of the run."""
    words = np.random.SeedSequence([seed & _MASK64, step, part, rank]).generate_state(2, np.uint32)
    return int(words[0]) << 32 | int(words[1])
