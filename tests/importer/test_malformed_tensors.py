"""Tensors whose dims, types and data disagree."""

from __future__ import annotations

import pytest
from onnx import SparseTensorProto, TensorProto, helper

from .conftest import Import
from .models import field, model, tensor, tensor_model, varint, wire_graph, wire_model

INVALID = "invalid model"
UNSUPPORTED = "unsupported"
FLOAT, INT64, INT4 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT4


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (tensor([-1, 4], raw_data=bytes(16)), "dims [-1, 4] has a negative dimension"),
        (tensor([2**32, 2**32], raw_data=bytes(4)), "more elements than int64"),
        # 2^62 * 4 elements * 4 bytes wrap to 0; (2^62 + 1) * 4 elements wrap to 4
        (tensor([2**62, 4], raw_data=bytes(4)), "more elements than int64"),
        (tensor([2**62 + 1, 4], raw_data=bytes(16)), "more elements than int64"),
        (tensor([2**62], raw_data=bytes(4)), "more elements than int64"),  # in bytes
        (tensor([2**40], raw_data=bytes(4)), f"4 bytes, float32 [{2**40}] needs {2**42}"),
        (tensor([2, 3], raw_data=bytes(12)), "raw_data holds 12 bytes, float32 [2, 3] needs 24"),
        (tensor([0], raw_data=bytes(4)), "float32 [0] needs 0"),
        (tensor([0], float_data=[1.0]), "float_data holds 1 entries, float32 [0] needs 0"),
        (tensor([1], raw_data=bytes(4), float_data=[1.0]), "raw_data and float_data"),
        (tensor([1], float_data=[1.0], int64_data=[1]), "float_data and int64_data"),
        (tensor([4]), "no data, float32 [4] needs 16"),
        (tensor([]), "no data, float32 [] needs 4"),
        (tensor([1], data_type=0, raw_data=bytes(4)), "data_type 0, UNDEFINED"),
        (tensor([1], data_type=999, raw_data=bytes(4)), "data type 999 does not exist"),
        (tensor([1], data_type=-1, raw_data=bytes(4)), "data type -1 does not exist"),
        (tensor([1], int64_data=[1]), "belong in float_data or raw_data, found int64_data"),
        (tensor([2], data_type=INT64, int32_data=[1, 2]), "belong in int64_data"),
        (tensor([3], data_type=INT64, int64_data=[1, 2]), "int64_data holds 2 entries"),
        (tensor([5], data_type=INT4, raw_data=bytes(2)), "2 bytes, int4 [5] needs 3"),
        (tensor([5], data_type=INT4, int32_data=[1, 2]), "holds 2 entries, int4 [5] needs 3"),
        (tensor([1], data_type=TensorProto.UINT8, int32_data=[256]), "256, outside the range"),
        (tensor([1], data_type=TensorProto.INT8, int32_data=[-129]), "-129, outside the range"),
        (tensor([1], data_type=TensorProto.FLOAT16, int32_data=[65536]), "65536, outside"),
        (tensor([2], data_type=TensorProto.BOOL, raw_data=b"\1\2"), "bool element 1 is the byte 2"),
        (tensor([1], data_location=1), "no location"),
        (tensor([1], raw_data=bytes(4)) + field(14, 7), "data_location 7"),
        (tensor([2]) + field(4, b"\0" * 7), "float_data holds 1 entries"),
        (tensor([1]) + field(4, b"\0" * 7), "no multiple of 4"),
        (tensor([1], data_type=INT64) + field(7, b"\x80" * 10 + b"\1"), "malformed varint"),
        (tensor([1], data_type=INT64) + field(7, b"\1\x80"), "malformed varint"),
        (field(1, b"\x80") + field(2, 1) + field(8, b"w"), "dims holds a malformed varint"),
    ],
)
def test_tensor(import_model: Import, content: bytes, named: str) -> None:
    result = import_model(tensor_model(content))
    result.expect_error(INVALID, named)
    if "data_location 7" not in named and "dims holds" not in named:
        assert "initializer 'w'" in result.message


def test_one_gigabyte_for_four_elements(import_model: Import) -> None:
    content = tensor([4]) + varint(9 << 3 | 2) + varint(2**30) + bytes(2**30)
    import_model(tensor_model(content)).expect_error(INVALID, str(2**30), "needs 16")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (tensor([1], data_type=TensorProto.STRING, raw_data=b"text"), "STRING"),
        (tensor([1], data_type=TensorProto.STRING, string_data=[b"text"]), "STRING"),
        (tensor([1], data_type=TensorProto.COMPLEX64, raw_data=bytes(8)), "COMPLEX64"),
        (tensor([1], data_type=TensorProto.FLOAT8E4M3FN, raw_data=bytes(1)), "FLOAT8E4M3FN"),
        (tensor([1], data_type=TensorProto.FLOAT4E2M1, raw_data=bytes(1)), "FLOAT4E2M1"),
        (tensor([1], data_type=TensorProto.UINT2, raw_data=bytes(1)), "UINT2"),
        (tensor([1] * 10_000, raw_data=bytes(4)), "10000 dimensions"),
        (tensor([1] * 9, raw_data=bytes(4)), "9 dimensions"),
        (tensor([1], raw_data=bytes(4), segment=TensorProto.Segment(begin=0, end=1)), "segments"),
    ],
)
def test_tensors_that_kvik_lacks(import_model: Import, content: bytes, named: str) -> None:
    import_model(tensor_model(content)).expect_error(UNSUPPORTED, "initializer 'w'", named)


def test_initializer_twice(import_model: Import) -> None:
    one = field(5, tensor([1], raw_data=bytes(4)))
    import_model(wire_model(wire_graph(one, one))).expect_error(INVALID, "initializer 'w'", "twice")


def test_initializer_without_name(import_model: Import) -> None:
    nameless = TensorProto(dims=[1], data_type=FLOAT, raw_data=bytes(4))
    import_model(tensor_model(nameless)).expect_error(INVALID, "without a name")


def test_initializer_with_the_name_of_an_output(import_model: Import) -> None:
    twice = TensorProto(name="y", dims=[1], data_type=FLOAT, raw_data=bytes(4))
    import_model(tensor_model(twice)).expect_error(INVALID, "'y' is defined twice")


def sparse(
    dims: list[int],
    indices: list[int],
    index_dims: list[int] | None = None,
    values: int | None = None,
    index_type: int = INT64,
) -> bytes:
    count = len(indices) if values is None else values
    proto = SparseTensorProto(dims=dims)
    proto.values.CopyFrom(helper.make_tensor("s", FLOAT, [count], [1.0] * count))
    proto.indices.CopyFrom(
        helper.make_tensor("", index_type, index_dims or [len(indices)], indices)
    )
    return wire_model(wire_graph(field(15, proto.SerializeToString())))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (sparse([4], [1, 4]), "index 4 of value 1 is outside dims [4]"),
        (sparse([4], [-1]), "index -1"),
        (sparse([2, 2], [0, 0, 0, 2], [2, 2], 2), "index 2 of value 1"),
        (sparse([4], [2, 1]), "not ascending at value 1"),
        (sparse([4], [1, 1]), "not ascending at value 1"),
        (sparse([2, 2], [1, 0, 0, 1], [2, 2], 2), "not ascending at value 1"),
        (sparse([2**32, 2**32], [0]), "more elements than int64"),
        (sparse([-2], [0]), "negative dimension"),
        (sparse([4], [1, 2], values=1), "indices are int64 [2], expected int64 [1]"),
        (sparse([4], [1], index_type=TensorProto.INT32), "indices are int32 [1]"),
        (wire_model(wire_graph(field(15, b""))), "without values"),
    ],
)
def test_sparse(import_model: Import, content: bytes, named: str) -> None:
    import_model(content).expect_error(INVALID, "sparse", named)


def test_sparse_beyond_the_budget(import_model: Import) -> None:
    import_model(sparse([2**34], [0])).expect_error("out of memory", "'s'", str(2**36))


def test_sparse_is_densified(import_model: Import) -> None:
    proto = SparseTensorProto(dims=[2, 3])
    proto.values.CopyFrom(helper.make_tensor("s", FLOAT, [2], [1.5, 2.5]))
    proto.indices.CopyFrom(helper.make_tensor("", INT64, [2, 2], [0, 1, 1, 2]))
    node = helper.make_node("Add", ["x", "s"], ["y"])
    made = model([node])
    made.graph.sparse_initializer.append(proto)
    output = import_model(made, "--constants").output
    import numpy as np

    expected = np.array([[0, 1.5, 0], [0, 0, 2.5]], np.float32).tobytes().hex()
    assert f"s float32 [2, 3] {expected}" in output
