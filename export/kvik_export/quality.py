"""What low-precision weights and caches cost: how far predictions move from those in fp32."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kvik.arguments import CacheType, WeightType
    from kvik.info import ModelInfo

LogProbabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """Means over all predicted tokens of a text."""

    weights: str
    cache: str
    tokens: int
    mean_kl: float  # Kullback-Leibler divergence from fp32's predictions, nats per token
    same_top: float  # share of tokens for which the most likely one is the same
    perplexity: float
    perplexity_f32: float
    packed_bytes: int

    def within(self, mean_kl: float, same_top: float) -> bool:
        return self.mean_kl <= mean_kl and self.same_top >= same_top


def measure_quality(
    path: str | os.PathLike[str],
    windows: Sequence[Sequence[int]],
    precisions: Iterable[tuple[WeightType, CacheType]],
    *,
    threads: int | None = None,
) -> list[Quality]:
    """Compare each precision with fp32 on windows of token ids.

    Args:
        path: a model that kvik can load.
        windows: sequences of at least 2 ids, none longer than the model's context.
        precisions: of the weights and of the cache, e.g. [("int8", "f32"), ("int4", "int8")].
    """
    import kvik

    reference = kvik.load(path, threads=threads)
    expected = [log_softmax(reference.logits(window)) for window in windows]
    results = []
    for weights, cache in precisions:
        model = kvik.load(path, threads=threads, weights=weights, cache=cache)
        found = [log_softmax(model.logits(window)) for window in windows]
        results.append(_compare(model.info, windows, expected, found))
    return results


def log_softmax(logits: npt.NDArray[np.float32]) -> LogProbabilities:
    """Of each row, float64 [rows, vocabulary]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    normalised: LogProbabilities = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return normalised


def _compare(
    info: ModelInfo,
    windows: Sequence[Sequence[int]],
    expected: Sequence[LogProbabilities],
    found: Sequence[LogProbabilities],
) -> Quality:
    kl = [(np.exp(p) * (p - q)).sum(axis=-1) for p, q in zip(expected, found, strict=True)]
    same = [p.argmax(axis=-1) == q.argmax(axis=-1) for p, q in zip(expected, found, strict=True)]
    return Quality(
        weights=info.weights,
        cache=info.cache,
        tokens=sum(map(len, kl)),
        mean_kl=float(np.concatenate(kl).mean()),
        same_top=float(np.concatenate(same).mean()),
        perplexity=_perplexity(windows, found),
        perplexity_f32=_perplexity(windows, expected),
        packed_bytes=info.packed_bytes,
    )


def _perplexity(windows: Sequence[Sequence[int]], rows: Sequence[LogProbabilities]) -> float:
    """Exp of the mean negative log-probability of each token but a window's first."""
    chosen = [
        row[np.arange(len(ids) - 1), np.asarray(ids[1:])]
        for ids, row in zip(windows, rows, strict=True)
    ]
    return float(np.exp(-np.concatenate(chosen).mean()))
