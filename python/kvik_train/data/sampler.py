"""Which windows of the corpus, or which examples of a data set, a training step sees.

The answer is a pure function of (seed, step): there is no iterator whose state would have to be
saved, a resumed run sees what an uninterrupted one would have seen, and how a batch is cut among
processes and accumulation steps does not change what is in it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

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


def example_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch goes through `count` examples: [count]."""
    return np.argsort(_stream(seed, _ORDER, epoch).random_raw(count), kind="stable")


def example_indices(seed: int, step: int, batch_size: int, count: int) -> list[int]:
    """The examples of one step: epochs of all examples in a new order each, one after the other."""
    indices: list[int] = []
    position = step * batch_size
    while len(indices) < batch_size:
        epoch, first = divmod(position + len(indices), count)
        wanted = batch_size - len(indices)
        indices += [int(index) for index in _order(seed, epoch, count)[first : first + wanted]]
    return indices


def noise(seed: int, step: int, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers, evenly in [0, 1), of a step's own: for masks, shifts and negatives."""
    raw = _stream(seed, _NOISE, step).random_raw(count)
    values: npt.NDArray[np.float64] = (raw >> np.uint64(11)) * 2.0**-53
    return values


# The streams beside that of window_starts, which has counter word 2 at zero.
_ORDER, _NOISE = 1, 2


def _stream(seed: int, kind: int, number: int) -> np.random.Philox:
    return np.random.Philox(key=seed & _MASK64, counter=[0, 0, kind, number])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return example_order(seed, epoch, count)
