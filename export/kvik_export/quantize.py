"""`kvik quantize`: the integers that kvik makes when it loads a model, stored in the model's file.

What is quantised, and to which integers and scales, is the engine's decision: it is asked, and this
module only writes the answer as DequantizeLinear nodes, per channel for int8 and in blocks of 32
for int4. W and R of recurrent layers have a scale or blocks of their own in each row, of whatever
direction and gate: they are stored as matrices [directions · gates · hidden, inputs], and a Reshape
follows. So loading the new file gives bitwise the numbers of kvik.load(weights=...) on the old one,
and onnxruntime runs it too.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import onnx_ir

import kvik
from kvik_export.errors import ExportError
from kvik_export.metadata import compact
from kvik_export.opset import raise_opset
from kvik_export.saving import check_destination, save_model, wants_external_data

if TYPE_CHECKING:
    from kvik import _core

IntegerType: TypeAlias = Literal["int8", "int4"]
BLOCK = 32  # inputs that share a scale in int4
# Opset and IR version from which DequantizeLinear takes what is written.
_NEEDS = {"int8": (13, 3), "int4": (21, 10)}
_PROVENANCE = "kvik.provenance"
_SMALL = 4096  # elements of a float tensor that is listed by itself


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix that became integers."""

    name: str
    shape: tuple[int, int]
    weights: str  # "int8" or "int4"
    use: str  # "linear layer", "recurrent layer", "embedding", "embedding = projection" if tied
    bytes_before: int
    bytes_after: int  # scales included


@dataclass(frozen=True)
class KeptTensor:
    """Floats that stayed as they were; `count` of them for the same reason."""

    name: str
    count: int
    dtype: str  # "float32"
    bytes: int
    reason: str


@dataclass(frozen=True)
class QuantizeResult:
    path: Path
    external_data: Path | None
    bytes_before: int  # of the file, and of the weights beside it if there are any
    bytes_after: int
    matrices: tuple[QuantizedMatrix, ...]
    kept: tuple[KeptTensor, ...]

    def summary(self) -> str:
        beside = f" with {self.external_data.name}" if self.external_data else ""
        return (
            f"{self.path}{beside}: {len(self.matrices)} matrices, "
            f"{self.bytes_before / 2**20:.1f} MiB before, {self.bytes_after / 2**20:.1f} MiB now"
        )


def quantize_model(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    weights: IntegerType,
    external_data: bool | None = None,
    threads: int | None = None,
) -> QuantizeResult:
    """Store a model's weights as the integers that kvik.load(path, weights=weights) computes with.

    Args:
        path: the .onnx file to read, with float32 weights.
        output: the .onnx file to write; one that is there is replaced when the new one is complete.
        weights: "int8", a scale per output channel, or "int4", a scale per 32 inputs of each. The
            rows of embedding tables are int8 by both; a tied table is stored twice by "int4".
        external_data: weights in OUTPUT.data beside the file; None: only if they exceed 2 GiB.

    Raises:
        ExportError: the output cannot be written, or is the input; nothing is there to quantise, or
            it is quantised already; an operator stands in the way.
        kvik.KvikError: kvik cannot load the file.
    """
    source, destination = Path(path), Path(output)
    if weights not in get_args(IntegerType):
        raise ExportError(f"weights is {weights!r}; expected 'int8' or 'int4'")
    check_destination(destination)
    if destination.exists() and source.exists() and destination.samefile(source):
        raise ExportError(f"{destination} is the input: write to another file")
    with _without_functions(source, destination.parent) as plain:
        engine = kvik.load(plain, weights=weights, threads=threads)._core
        matrices = engine.matrices()
        chosen = _choose(matrices, source)
        model = onnx_ir.load(plain)
        done = [_replace(model, engine, matrix) for matrix in chosen]
        _drop_unused(model, {matrix.name for matrix in chosen})
        if any(matrix.weights == "int4" for matrix in chosen):
            _require(model, "int4")
        _require(model, "int8")
        _note(model, weights)
        onnx_ir.external_data.load_to_model(model)  # what is left beside the old file
        beside = save_model(model, destination, external=wants_external_data(model, external_data))
    _check_again(destination, chosen, threads)
    return QuantizeResult(
        path=destination,
        external_data=beside,
        bytes_before=_stored_bytes(source),
        bytes_after=destination.stat().st_size + (beside.stat().st_size if beside else 0),
        matrices=tuple(done),
        kept=tuple(_kept(model, matrices)),
    )


@contextmanager
def _without_functions(path: Path, folder: Path) -> Iterator[Path]:
    """A model whose functions stand in place of their calls: the file itself where it has none.

    The engine inlines functions too, under names of its own.
    """
    try:
        model = onnx_ir.load(path)
    except Exception:  # kvik says what is wrong with it
        yield path
        return
    if not model.functions:
        yield path
        return
    from onnx_ir.passes.common import InlinePass

    inlined = InlinePass()(model).model
    with tempfile.TemporaryDirectory(dir=folder, prefix=".quantize-") as work:
        plain = Path(work) / "inlined.onnx"
        external = wants_external_data(inlined, None)
        onnx_ir.save(inlined, plain, external_data="inlined.onnx.data" if external else None)
        yield plain


def _choose(matrices: list[_core.MatrixInfo], path: Path) -> list[_core.MatrixInfo]:
    """The matrices that the engine keeps as integers, checked."""
    if any(matrix.stored for matrix in matrices):
        raise ExportError(f"{path} is quantised already: quantise the file that it was made from")
    chosen = [matrix for matrix in matrices if matrix.weights in get_args(IntegerType)]
    if not chosen:
        raise ExportError(
            f"nothing to quantise in {path}: it has no linear or recurrent layer and no embedding "
            "table of at least 32 inputs and 4096 elements"
        )
    for matrix in chosen:
        if matrix.other_use:
            raise ExportError(
                f"the matrix {matrix.name!r} is also read by {matrix.other_use}, which needs its "
                "floats: it cannot be stored as integers alone"
            )
    return chosen


def _replace(
    model: onnx_ir.Model, engine: _core.Model, matrix: _core.MatrixInfo
) -> QuantizedMatrix:
    """Put a DequantizeLinear of integers where the matrix was."""
    integers, scales = engine.integers(matrix)
    if not np.isfinite(scales).all():
        raise ExportError(f"the matrix {matrix.name!r} has NaN or infinities")
    graph = model.graph
    old = _find(graph, matrix.name)
    int4 = matrix.weights == "int4"
    users = [user for user in old.uses() if _concerns(matrix, *user)]
    dtype = onnx_ir.DataType.INT4 if int4 else onnx_ir.DataType.INT8
    name = matrix.name
    values = _add(graph, f"{name}.{matrix.weights}", _as_tensor(integers, dtype))
    steps = scales if int4 else scales.reshape(-1)
    scale = _add(graph, f"{name}.scale", onnx_ir.tensor(steps))
    attributes = {"axis": matrix.channel_axis}
    if int4:
        attributes = {"axis": 1 - matrix.channel_axis, "block_size": BLOCK}
    node = onnx_ir.node("DequantizeLinear", [values, scale], attributes=attributes)
    node.name = f"{name}.dequantize.{matrix.weights}"
    node.outputs[0].dtype = onnx_ir.DataType.FLOAT
    node.outputs[0].shape = onnx_ir.Shape(matrix.shape)
    node.outputs[0].name = f"{name}.dequantized.{matrix.weights}"
    graph.insert_before(graph[0], node)
    made = node.outputs[0]
    if matrix.directions:
        made = _restore_shape(graph, matrix, node)
    for user, index in users:
        user.replace_input_with(index, made)
    return QuantizedMatrix(
        name=name,
        shape=matrix.shape,
        weights=matrix.weights,
        use=_use_of(matrix),
        bytes_before=4 * integers.size,
        bytes_after=(integers.size + 1) // 2 + scales.nbytes if int4
        else integers.nbytes + scales.nbytes,
    )  # fmt: skip


def _use_of(matrix: _core.MatrixInfo) -> str:
    if matrix.looked_up:
        return "embedding" + (" = projection" if matrix.multiplied else "")
    return "recurrent layer" if matrix.directions else "linear layer"


def _restore_shape(
    graph: onnx_ir.Graph, matrix: _core.MatrixInfo, dequantize: onnx_ir.Node
) -> onnx_ir.Value:
    """W or R [directions, gates · hidden, inputs] of a DequantizeLinear of its matrix."""
    rows, columns = matrix.shape
    shape = [matrix.directions, rows // matrix.directions, columns]
    target = _add(graph, f"{matrix.name}.shape", onnx_ir.tensor(np.array(shape, np.int64)))
    node = onnx_ir.node("Reshape", [dequantize.outputs[0], target])
    node.name = f"{matrix.name}.reshape.{matrix.weights}"
    node.outputs[0].dtype = onnx_ir.DataType.FLOAT
    node.outputs[0].shape = onnx_ir.Shape(shape)
    node.outputs[0].name = f"{matrix.name}.reshaped.{matrix.weights}"
    graph.insert_after(dequantize, node)
    return node.outputs[0]


def _as_tensor(integers: np.ndarray, dtype: onnx_ir.DataType) -> onnx_ir.TensorProtocol:
    if dtype == onnx_ir.DataType.INT8:
        return onnx_ir.tensor(integers)
    return onnx_ir.Tensor(integers.astype(dtype.numpy()), dtype=dtype)


def _find(graph: onnx_ir.Graph, name: str) -> onnx_ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    for node in graph:
        for value in node.outputs:
            if value.name == name:
                return value
    raise ExportError(f"the matrix {name!r} is computed inside a body of the graph")


def _add(graph: onnx_ir.Graph, name: str, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
    """A new initializer under a name that is free."""
    taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    while name in taken:
        name += "_"
    value = onnx_ir.Value(
        name=name, const_value=tensor, shape=onnx_ir.Shape(tensor.shape.numpy()),
        type=onnx_ir.TensorType(tensor.dtype),
    )  # fmt: skip
    tensor.name = name
    graph.register_initializer(value)
    return value


def _concerns(matrix: _core.MatrixInfo, user: onnx_ir.Node, index: int) -> bool:
    """Whether this entry of the matrix is the one that a node's input stands for.

    A tied table is two where its rows have 8 bits and the projection has 4.
    """
    if matrix.looked_up and matrix.multiplied:
        return True
    return matrix.looked_up == (user.op_type == "Gather" and index == 0)


def _drop_unused(model: onnx_ir.Model, names: set[str]) -> None:
    """Remove the floats that integers have replaced, and what made them."""
    for name in names:
        old = _find(model.graph, name)
        if old.uses() or old.is_graph_output():
            continue
        producer = old.producer()
        if producer is not None:
            _drop(model.graph, producer)
            continue
        model.graph.initializers.pop(name, None)
        if old in model.graph.inputs:
            model.graph.inputs.remove(old)


def _drop(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Remove a node that nobody uses, and what only it used."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in inputs:
        if value.uses() or value.is_graph_output():
            continue
        producer = value.producer()
        if producer is not None:
            _drop(graph, producer)
        elif value.name in graph.initializers:
            graph.initializers.pop(str(value.name))


def _require(model: onnx_ir.Model, weights: IntegerType) -> None:
    opset, ir_version = _NEEDS[weights]
    raise_opset(model, opset, f"{weights} in standard ONNX")
    model.ir_version = max(model.ir_version, ir_version)


def _note(model: onnx_ir.Model, weights: str) -> None:
    """Say in the metadata what was done."""
    try:
        provenance = json.loads(model.metadata_props.get(_PROVENANCE, "{}"))
    except ValueError:
        provenance = None
    if not isinstance(provenance, dict):
        provenance = {}
    provenance["quantized"] = {"weights": weights, "kvik": version("kvik")}
    model.metadata_props[_PROVENANCE] = compact(provenance)


def _check_again(path: Path, chosen: list[_core.MatrixInfo], threads: int | None) -> None:
    """Whether the engine takes the file's integers for what they are."""
    found = kvik.load(path, threads=threads)._core.matrices()
    expected = Counter((item.weights, item.shape, item.looked_up) for item in chosen)
    stored = Counter((item.weights, item.shape, item.looked_up) for item in found if item.stored)
    if stored != expected:
        raise ExportError(
            f"{path} was written, but kvik does not read all of its integers as such: "
            f"{sum((expected - stored).values())} of {sum(expected.values())} matrices are missing"
        )


def _stored_bytes(path: Path) -> int:
    """Of the file, and of the files with its weights."""
    files = {path.name}
    for value in onnx_ir.load(path).graph.initializers.values():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            files.add(str(value.const_value.location))
    return sum((path.parent / name).stat().st_size for name in files)


def _kept(model: onnx_ir.Model, matrices: list[_core.MatrixInfo]) -> Iterator[KeptTensor]:
    """The floats that stay, large ones by name, and why."""
    listed = {matrix.name for matrix in matrices}
    rest: dict[tuple[str, str], list[int]] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        users = sorted({node.op_type for node, _ in value.uses()})
        if tensor is None or not tensor.dtype.is_floating_point() or users == ["DequantizeLinear"]:
            continue
        dtype = str(tensor.dtype.numpy())
        if name in listed:
            reason = "fewer than 32 inputs or 4096 elements"
        elif tensor.size < _SMALL or len(tensor.shape) < 2:
            reason = "not a linear layer"
        else:
            yield KeptTensor(name, 1, dtype, tensor.nbytes, f"read by {', '.join(users)}")
            continue
        rest.setdefault((reason, dtype), []).append(tensor.nbytes)
    for (reason, dtype), sizes in rest.items():
        yield KeptTensor("", len(sizes), dtype, sum(sizes), reason)
