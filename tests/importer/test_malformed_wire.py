"""Bytes that are no model, and headers that promise what Kvik lacks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from .conftest import Import
from .models import field, model, tensor, tensor_model, varint, wire_graph, wire_model

RELU = helper.make_node("Relu", ["x"], ["y"], name="relu")
INVALID = "invalid model"
UNSUPPORTED = "unsupported"
BUDGET = "out of memory"


def test_the_hand_made_models_are_valid(import_model: Import) -> None:
    """Else the tests below would be refused for another reason than theirs."""
    assert import_model(wire_model(wire_graph())).ok
    assert import_model(tensor_model(tensor([1], raw_data=b"1234"))).ok
    assert import_model(model([RELU])).ok


def test_the_probe_sees_memory(import_model: Import) -> None:
    """Else no bound on the peak could fail: 16 MiB that are decoded must show."""
    count = 2**21
    initializer = field(1, count) + field(2, TensorProto.INT64) + field(8, b"w")
    result = import_model(tensor_model(initializer + field(7, bytes(count))))
    assert result.ok
    assert 16 <= result.peak_mib < 64


# Wire


def test_empty_file(import_model: Import) -> None:
    import_model(b"").expect_error(INVALID, "empty")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF"),
        (b"PK\x03\x04" + bytes(64), "zip"),
        (b'{"model": {"layers": []}}', "JSON"),
        (b'\n  {"model": {}}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"Lorem ipsum dolor sit amet", ""),
    ],
)
def test_other_kinds_of_file(import_model: Import, content: bytes, named: str) -> None:
    import_model(content).expect_error(INVALID, named)


def test_length_beyond_the_file(import_model: Import) -> None:
    header = field(1, 8)
    raw_data = varint(9 << 3 | 2) + varint(2**31 - 1)
    initializer = varint(5 << 3 | 2) + varint(200) + raw_data
    content = header + varint(7 << 3 | 2) + varint(300) + initializer
    import_model(content.ljust(40, b"\0")).expect_error(INVALID, "300", "bytes left")
    inner = tensor_model(field(8, b"w") + raw_data)
    import_model(inner).expect_error(INVALID, "TensorProto", "length 2147483647")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\x08" + b"\x80" * 10 + b"\x01", "64 bits"),  # eleven bytes
        (b"\x08" + b"\xff" * 9 + b"\x02", "64 bits"),  # ten bytes, 65 bits
        (b"\x08" + b"\x80" * 3, "cut short"),
        (field(1, b"8"), "'ir_version' has the wire type length-delimited"),
        (field(1, 8) + field(7, 5), "'graph' has the wire type varint"),
        (b"\x0b\x08\x01\x0c", "wire type 3"),  # a group
        (b"\x0e", "wire type 6"),
        (b"\x02\x00", "field number 0"),
        (b"\x0d\x00\x00", "needs 4 bytes"),
        (wire_model(wire_graph()) + field(7, b""), "'graph' is there twice"),
        (wire_model(wire_graph(field(2, b"\xff\xfe"))), "'name' is not UTF-8"),
    ],
)
def test_malformed_wire(import_model: Import, content: bytes, named: str) -> None:
    import_model(content).expect_error(INVALID, named)


def test_nested_messages(import_model: Import) -> None:
    """Types within types are not walked, however deep: only tensors are of use."""
    type_proto = field(1, field(1, 1))
    for _ in range(1000):
        type_proto = field(4, field(1, type_proto))
    deep = field(11, field(1, b"deep") + field(2, type_proto))
    import_model(wire_model(wire_graph(deep))).expect_error(UNSUPPORTED, "'deep'", "no tensor")
    groups = b"\x0b" * 1000
    import_model(groups).expect_error(INVALID, "wire type 3")


def test_more_than_2_gib_inline(import_model: Import, tmp_path: Path) -> None:
    """Lengths have 64 bits here: such a file, which protobuf's own reader refuses, is read."""
    size = 2**31 + 4096
    path = tmp_path / "large.onnx"
    raw = varint(9 << 3 | 2) + varint(size)
    head = field(1, size // 4) + field(2, 1) + field(8, b"w")
    initializer = varint(5 << 3 | 2) + varint(len(head) + len(raw) + size) + head + raw
    node = field(1, field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"Add"))
    rest = node + wire_graph()[len(field(1, field(1, b"x") + field(2, b"y") + field(4, b"Relu"))) :]
    graph_size = len(initializer) + size + len(rest)
    with path.open("wb") as file:
        file.write(field(1, 8) + varint(7 << 3 | 2) + varint(graph_size) + initializer)
        file.seek(size, os.SEEK_CUR)  # a hole: no disk, no memory
        file.write(rest + field(8, field(1, b"") + field(2, 18)))
    result = import_model(path, "--dump")
    assert result.ok, result.message
    assert f"w float32 [{size // 4}]" in result.output
    assert result.peak_mib < 64


def test_ten_million_empty_nodes(import_model: Import) -> None:
    import_model(wire_model(b"\x0a\x00" * 10_000_000)).expect_error(BUDGET, "250000 nodes")


def test_ten_million_unknown_fields(import_model: Import) -> None:
    import_model(b"\x98\x06\x00" * 40_000_000).expect_error(BUDGET, "fields")


def test_ten_million_inputs_of_a_node(import_model: Import) -> None:
    node = b"\x0a\x00" * 10_000_000 + field(2, b"y") + field(4, b"Concat")
    import_model(wire_model(field(1, node) + wire_graph())).expect_error(BUDGET, "inputs")


def test_many_small_varints(import_model: Import) -> None:
    """200 MB of one-byte varints would be 1.6 GB of int64."""
    count = 200_000_000
    initializer = field(1, count) + field(2, TensorProto.INT64) + field(8, b"w")
    result = import_model(tensor_model(initializer + field(7, bytes(count))))
    result.expect_error(BUDGET, "initializer 'w'", "1600000000 bytes")


# Header


def test_no_ir_version(import_model: Import) -> None:
    broken = model([RELU])
    broken.ClearField("ir_version")
    import_model(broken).expect_error(INVALID, "ir_version")


@pytest.mark.parametrize("version", [0, -1, 2])
def test_impossible_ir_version(import_model: Import, version: int) -> None:
    broken = model([RELU])
    broken.ir_version = version
    import_model(broken).expect_error(INVALID, "ir_version", str(version))


def test_future_ir_version(import_model: Import) -> None:
    broken = model([RELU])
    broken.ir_version = 99
    import_model(broken).expect_error(UNSUPPORTED, "ir_version is 99")


def test_no_opset_import(import_model: Import) -> None:
    broken = model([RELU])
    del broken.opset_import[:]
    import_model(broken).expect_error(INVALID, "opset_import")


def test_opset_import_without_onnx(import_model: Import) -> None:
    broken = model([RELU])
    broken.opset_import[0].domain = "com.microsoft"
    broken.opset_import[0].version = 1
    import_model(broken).expect_error(INVALID, "Relu node 'relu'", "''", "opset_import")


@pytest.mark.parametrize("version", [2**40, 6, 26])
def test_opset_beyond_what_is_known(import_model: Import, version: int) -> None:
    broken = model([RELU])
    broken.opset_import[0].version = version
    import_model(broken).expect_error(UNSUPPORTED, f"opset {version}")


@pytest.mark.parametrize("version", [0, -5])
def test_impossible_opset(import_model: Import, version: int) -> None:
    broken = model([RELU])
    broken.opset_import[0].version = version
    import_model(broken).expect_error(INVALID, str(version), "'ai.onnx'")


def test_domain_twice(import_model: Import) -> None:
    """'ai.onnx' is another name of ''."""
    import_model(model([RELU], domains=["a", "a"])).expect_error(INVALID, "'a' twice")
    import_model(model([RELU], domains=["ai.onnx"])).expect_error(INVALID, "'ai.onnx' twice")


def test_all_unsupported_operators_in_one_error(import_model: Import) -> None:
    nodes = [
        helper.make_node("Sinh", ["x"], ["a"], name="first"),
        helper.make_node("Sinh", ["a"], ["b"], name="second"),
        helper.make_node("Foo", ["b"], ["c"], domain="com.acme", name="third"),
        helper.make_node("Upsample", ["c", "x"], ["d"], name="fourth"),
        helper.make_node("Relu", ["d"], ["y"], name="fifth"),
    ]
    broken = model(nodes, opset=9, domains=["com.acme"])
    result = import_model(broken, "--supported=Relu")
    result.expect_error(
        UNSUPPORTED,
        "Sinh (2 nodes, first 'first')",
        "com.acme.Foo (1 node, 'third')",
        "Resize (1 node, 'fourth')",
    )
    assert "Relu" not in result.message
    assert import_model(broken, "--supported=Relu,Sinh,Resize,com.acme.Foo").ok
