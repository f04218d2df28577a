"""Models for the import tests: shorthands for onnx.helper, and protobuf written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper


def varint(value: int) -> bytes:
    """A protobuf varint; negative numbers as 64-bit two's complement."""
    value %= 2**64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes | int) -> bytes:
    """A length-delimited field, or a varint field for an int."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def wire_model(graph: bytes, opset: int = 18) -> bytes:
    """A ModelProto around the bytes of a GraphProto."""
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, opset))


def wire_graph(*fields: bytes) -> bytes:
    """A GraphProto: y = Relu(x), and more fields."""
    node = field(1, b"x") + field(2, b"y") + field(4, b"Relu")
    x = field(1, b"x") + field(2, field(1, field(1, 1)))
    return field(1, node) + b"".join(fields) + field(11, x) + field(12, field(1, b"y"))


def tensor_model(tensor: TensorProto | bytes) -> bytes:
    """A model with the tensor as an unused initializer; every initializer is checked."""
    content = tensor if isinstance(tensor, bytes) else tensor.SerializeToString()
    return wire_model(wire_graph(field(5, content)))


def tensor(dims: Sequence[int], data_type: int = TensorProto.FLOAT, **fields: object) -> bytes:
    """A TensorProto named w, valid or not, serialized."""
    return TensorProto(name="w", dims=dims, data_type=data_type, **fields).SerializeToString()


def value(
    name: str, shape: Sequence[int | str | None] | None = (), dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto | str] = ("x",),
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 18,
    initializers: Sequence[TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model; inputs given by name alone are float tensors of shape [rows, columns]."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [value(i, ("rows", "columns")) if isinstance(i, str) else i for i in inputs],
        [value(o, None) for o in outputs],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in domains]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)


def body(
    nodes: Sequence[onnx.NodeProto], output: str, inputs: Sequence[str] = ()
) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), "body", [value(i, None) for i in inputs], [value(output, None)]
    )
