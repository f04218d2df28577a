"""Where two engines part: the first value of the graph, in the file's order, that differs.

Every inner value is made an output, in onnxruntime with its optimiser off and in kvik with its
fusions off, and the values are compared by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import onnx
from kvik_export.compare import TOLERANCE, scaled_error
from kvik_export.engines import onnxruntime_session

Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Divergence:
    value: str  # the first value that differs
    node: str  # the node that computes it
    op: str
    error: float  # scaled as compare.scaled_error
    fused: bool  # only when kvik fuses: each node by itself agrees

    def describe(self) -> str:
        where = f"node {self.node!r} ({self.op}), value {self.value!r}"
        how = (
            ", only with fusions on: the fault is in a pass or a fused kernel" if self.fused else ""
        )
        return f"first difference at {where}: error {self.error:.3g}{how}"


def first_divergence(path: Path, feeds: Feeds) -> Divergence | None:
    """The first differing value, or None if every value agrees when the graph is run as it stands.

    Raises:
        kvik.KvikError: kvik cannot run the graph.
    """
    model = onnx.load(path, load_external_data=False)
    names = inner_values(model)
    reference = _onnxruntime_values(model, path, names, feeds)
    outputs = {value.name for value in model.graph.output}
    found = _kvik_values(path, names, outputs, feeds, optimize=False)
    makers = {name: node for node in model.graph.node for name in node.output}
    for name, value in reference.items():
        if (error := _error(found[name], value)) > TOLERANCE:
            return Divergence(name, makers[name].name, makers[name].op_type, error, fused=False)
    return _first_fused(path, names, outputs, reference, makers, feeds)


def inner_values(model: onnx.ModelProto) -> list[str]:
    """All values that nodes of the main graph compute, in the file's order."""
    return [name for node in model.graph.node for name in node.output if name]


def _onnxruntime_values(
    model: onnx.ModelProto, path: Path, names: list[str], feeds: Feeds
) -> dict[str, npt.NDArray[Any]]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    # A name alone: onnxruntime infers the type.
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime_session(
        probe.SerializeToString(), optimize=False, folder=str(path.resolve().parent)
    )
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _kvik_values(
    path: Path, names: list[str], outputs: set[str], feeds: Feeds, *, optimize: bool
) -> dict[str, npt.NDArray[Any]]:
    import kvik

    inner = [name for name in names if name not in outputs]
    session = kvik.InferenceSession(path, optimize=optimize, extra_outputs=inner)
    return dict(zip(names, session.run(names, feeds), strict=True))


def _first_fused(
    path: Path,
    names: list[str],
    outputs: set[str],
    reference: Mapping[str, npt.NDArray[Any]],
    makers: Mapping[str, onnx.NodeProto],
    feeds: Feeds,
) -> Divergence | None:
    """Bisect with fusions on. One value is asked for at a time: asking keeps it from being fused.

    Takes it that what follows a wrong value is wrong too, as is the case in a deep model.
    """

    def error_at(index: int) -> float:
        name = names[index]
        found = _kvik_values(path, [name], outputs, feeds, optimize=True)
        return _error(found[name], reference[name])

    low, high = 0, len(names) - 1
    error = error_at(high)
    if not error > TOLERANCE:
        return None
    while low < high:
        middle = (low + high) // 2
        here = error_at(middle)
        if here > TOLERANCE:
            high, error = middle, here
        else:
            low = middle + 1
    node = makers[names[low]]
    return Divergence(names[low], node.name, node.op_type, error, fused=True)


def _error(found: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    if found.shape != reference.shape or found.dtype != reference.dtype:
        return float("inf")
    if not np.issubdtype(reference.dtype, np.floating):
        return 0.0 if np.array_equal(found, reference) else float("inf")
    return float(scaled_error(found, reference).max(initial=0.0))
