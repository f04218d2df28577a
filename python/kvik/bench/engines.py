"""The engines that are compared, behind one interface."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from kvik.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    import kvik
    from kvik.arguments import CacheType, WeightType

__all__ = ["Decoded", "Engine", "KvikEngine", "OnnxRuntimeEngine", "load_generator", "open_engine"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decoded:
    """Greedy tokens, and when each was there, in seconds since the prompt was handed over."""

    tokens: list[int]
    times: list[float]

    @property
    def first_token_seconds(self) -> float:
        return self.times[0]

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


class Engine(Protocol):
    """A loaded model."""

    name: str
    version: str
    how: str  # what it does for each new token

    def prefill(self, prompt: Ids) -> npt.NDArray[np.float32]:
        """Logits of every token: float32 [len(prompt), vocab_size]."""

    def decode(self, prompt: Ids, new_tokens: int) -> Decoded:
        """Continue the prompt greedily."""


def load_generator(
    path: Path, threads: int | None, weights: WeightType, cache: CacheType
) -> kvik.Model:
    """The model; raises InvalidArgumentError for one without prefill and decode to time."""
    import kvik

    model = kvik.load(path, threads=threads, weights=weights, cache=cache)
    if not model.generates:
        raise InvalidArgumentError(
            f"{path} continues no texts, its task is {model.task}: there are no prefill and decode "
            "to time; python -m benchmarks.families times models of every task"
        )
    return model


class KvikEngine:
    """This engine, through its public package."""

    def __init__(
        self,
        path: Path,
        threads: int | None,
        weights: WeightType = "f32",
        cache: CacheType = "f32",
    ) -> None:
        import kvik

        self.name = "kvik"
        self.version = kvik.__version__
        self.model = load_generator(path, threads, weights, cache)
        self.how = (
            "one row a token, keys and values cached"
            if self.model.info.incremental
            else "the whole sequence for each token"
        )

    def prefill(self, prompt: Ids) -> npt.NDArray[np.float32]:
        return self.model.logits(prompt)

    def decode(self, prompt: Ids, new_tokens: int) -> Decoded:
        tokens: list[int] = []
        times: list[float] = []
        start = time.perf_counter()
        for token in self.model.stream(prompt, max_new_tokens=new_tokens, stop_ids=()):
            times.append(time.perf_counter() - start)
            tokens.append(token)
        return Decoded(tokens, times)


class OnnxRuntimeEngine:
    """onnxruntime on the same file: a plain forward has no cache, so it recomputes everything."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # its warnings would mix with the report
        self.name = "onnxruntime"
        self.version = str(onnxruntime.__version__)
        self.how = "the whole sequence for each token"
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._feeds = [_feed_maker(node) for node in self._session.get_inputs()]
        names = [node.name for node in self._session.get_outputs()]
        self._output = "logits" if "logits" in names else names[0]

    def prefill(self, prompt: Ids) -> npt.NDArray[np.float32]:
        feeds = {name: make(prompt) for name, make in self._feeds}
        (logits,) = self._session.run([self._output], feeds)
        found: npt.NDArray[np.float32] = np.asarray(logits)[0]
        return found

    def decode(self, prompt: Ids, new_tokens: int) -> Decoded:
        ids, times = list(map(int, prompt)), []
        start = time.perf_counter()
        for _ in range(new_tokens):
            ids.append(int(self.prefill(np.asarray(ids, dtype=np.int64))[-1].argmax()))
            times.append(time.perf_counter() - start)
        return Decoded(ids[len(prompt) :], times)


# The inputs along the token axis whose meaning is known, made from token ids [length].
_KNOWN_INPUTS: dict[str, Any] = {
    "attention_mask": np.ones_like,
    "position_ids": lambda ids: np.arange(len(ids)),
    "token_type_ids": np.zeros_like,
}
_NUMPY_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
}


def _feed_maker(node: Any) -> tuple[str, Any]:
    """(name, ids -> array [1, length]) for an input of the model."""
    dtype = _NUMPY_TYPES.get(node.type)
    known = _KNOWN_INPUTS.get(node.name)
    if known is None and node.type in ("tensor(int64)", "tensor(int32)"):
        known = np.asarray  # the token ids
    if dtype is None or known is None or len(node.shape) != 2:
        raise UnsupportedError(f"input {node.name!r} ({node.type} {node.shape}) can't be fed")
    return node.name, lambda ids: known(ids)[None].astype(dtype)


def open_engine(
    name: str,
    path: Path,
    threads: int | None,
    weights: WeightType = "f32",
    cache: CacheType = "f32",
) -> Engine:
    """The engine of this name with the model loaded; ``weights`` and ``cache`` are kvik's."""
    if name == "kvik":
        return KvikEngine(path, threads, weights, cache)
    if name == "onnxruntime":
        return OnnxRuntimeEngine(path, threads)
    raise InvalidArgumentError(f"no engine is called {name!r}")
