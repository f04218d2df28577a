"""Any supported graph, called as onnxruntime's InferenceSession is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from kvik import _core
from kvik.arguments import WeightType, check_choice, check_names, check_path, check_threads
from kvik.attention import SessionAttention, check_kind, check_layers
from kvik.errors import InvalidArgumentError
from kvik.info import tensor_info
from kvik.profile import Profile, read_profile

if TYPE_CHECKING:
    import os

    from kvik.attention import AttentionKind

__all__ = ["InferenceSession", "NodeArg"]

# Where onnxruntime's names of element types differ from numpy's.
_ORT_TYPES = {"float32": "float", "float64": "double"}


class NodeArg:
    """An input or output, described as onnxruntime does."""

    def __init__(self, core: _core.TensorInfo) -> None:
        info = tensor_info(core)
        #: Its name in the file.
        self.name: str = info.name
        #: E.g. "tensor(float)", "tensor(int64)".
        self.type: str = f"tensor({_ORT_TYPES.get(info.dtype, info.dtype)})"
        #: Sizes; the name of a symbolic dimension; None where nothing is known. Empty for a scalar,
        #: and where not even the rank is known.
        self.shape: list[int | str | None] = list(info.shape or ())
        self._dtype = info.dtype

    def __repr__(self) -> str:
        return f"NodeArg(name={self.name!r}, type={self.type!r}, shape={self.shape})"


class InferenceSession:
    """Runs a graph as it stands: named numpy arrays in, numpy arrays out.

    Threads: run() may be called from several threads at once. A session can't be used in a forked
    child: make another there.

    Args:
        path_or_bytes: The .onnx file (mapped; it must not change while the session lives), or its
            contents (copied; external data is refused).
        threads: Threads to compute with; None: one for each CPU of this process.
        optimize: False: run every node as the file spells it, nothing fused.
        extra_outputs: Inner values, by name, to be offered as outputs after the graph's own.
        weights: Precision in which the matrices of linear and recurrent layers and convolutions are
            kept in memory, as for :func:`kvik.load`.

    Raises:
        FileError: The file can't be read.
        InvalidModelError: The bytes are not a valid model.
        UnsupportedError: Operators are missing; the message lists all of them.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        threads: int | None = None,
        *,
        optimize: bool = True,
        extra_outputs: Sequence[str] = (),
        weights: WeightType = "f32",
    ) -> None:
        count, extra = check_threads(threads), check_names(extra_outputs, "extra_outputs")
        kept = check_choice(weights, "weights", get_args(WeightType))
        if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
            data = bytes(path_or_bytes)
            self._core = _core.Session.from_bytes(data, count, optimize, extra, kept)
        else:
            path = check_path(path_or_bytes)
            self._core = _core.Session.load(path, count, optimize, extra, kept)
        self._inputs = [NodeArg(info) for info in self._core.inputs]
        self._outputs = [NodeArg(info) for info in self._core.outputs]
        self._dtypes = {arg.name: arg._dtype for arg in self._inputs}

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata_props."""
        return self._core.metadata

    def get_inputs(self) -> list[NodeArg]:
        """The inputs that must be fed, in the file's order."""
        return list(self._inputs)

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, in the file's order; extra_outputs last."""
        return list(self._outputs)

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, npt.ArrayLike]
    ) -> list[npt.NDArray[Any]]:
        """Run the graph.

        Args:
            output_names: Which outputs, in which order; None or empty: all.
            input_feed: One array for every input. Element types must be the input's own: nothing is
                cast. Contiguous arrays are read in place, others are copied first.

        Returns:
            The outputs. They own their memory and stay valid after the session.

        Raises:
            InvalidArgumentError: A feed is missing, unknown, or of the wrong type or shape; an
                output is unknown; a node can't combine its inputs. The session stays usable.
        """
        names = check_names(() if output_names is None else output_names, "output_names")
        return self._core.run(names, self._feeds(input_feed))

    def attention(
        self,
        input_feed: Mapping[str, npt.ArrayLike],
        *,
        kind: AttentionKind | None = None,
        layers: int | Sequence[int] | None = None,
    ) -> list[SessionAttention]:
        """The weights of the attentions in the graph.

        Found are every Attention, and every softmax over its last axis whose result a product takes
        with values, outside of the bodies of control flow. No more of the graph is run than they
        need; preparing that part takes time at every call. For a model of texts kvik.load and its
        :meth:`kvik.Model.attention` are faster, and know the tokens.

        Args:
            input_feed: As :meth:`run` takes it.
            kind: "cross" where queries and keys are counted by different dimensions, "self", or
                "source" where only the keys of a "cross" are counted so; None: all.
            layers: Of each kind, a layer or several, counted from 0; None: all.

        Raises:
            UnsupportedError: The graph has no attention.
            InvalidArgumentError: As run(); a kind or a layer that there is none of.
        """
        chosen, numbers = check_kind(kind), check_layers(layers)
        groups = self._core.attention(self._feeds(input_feed), chosen, numbers)
        return [
            SessionAttention(
                group.kind,  # type: ignore[arg-type]
                group.weights, group.queries, group.keys, list(group.layers), group.names,
            )
            for group in groups
        ]  # fmt: skip

    def start_profile(self) -> None:
        """Time every node of the runs that begin from now on, forgetting earlier ones."""
        self._core.start_profile()

    def stop_profile(self) -> Profile:
        """Stop, and return what was recorded since start_profile(); nothing without it."""
        return read_profile(self._core.stop_profile())

    def _feeds(self, input_feed: Mapping[str, npt.ArrayLike]) -> list[tuple[str, npt.NDArray[Any]]]:
        if not isinstance(input_feed, Mapping):
            raise InvalidArgumentError(
                f"input_feed must map input names to arrays; found {type(input_feed).__name__}"
            )
        fed = check_names(input_feed, "the keys of input_feed")
        return [(name, self._array(name, input_feed[name])) for name in fed]

    def _array(self, name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
        """The value as an array that the engine can read in place."""
        try:
            array = np.asarray(value)
        except ValueError as error:  # lists of unequal length
            raise InvalidArgumentError(f"input '{name}' is not an array: {error}") from error
        expected = self._dtypes.get(name)
        if expected is not None and array.dtype.name != expected:
            raise InvalidArgumentError(
                f"input '{name}' must be {expected}; found {array.dtype.name}: "
                f"convert it with .astype(numpy.{expected})"
            )
        if not array.dtype.isnative:
            raise InvalidArgumentError(
                f"input '{name}' has the byte order of another machine ({array.dtype.str}): "
                f"convert it with .astype(numpy.{array.dtype.name})"
            )
        return np.require(array, requirements=["C", "ALIGNED"])
