"""What valid models become: constants, names, canonical forms, bodies, functions."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .conftest import Import
from .models import body, field, model, value

node = helper.make_node


def listing(import_model: Import, made: object) -> list[str]:
    """The dump, without its first line's indentation, runs of spaces as one."""
    result = import_model(made, "--dump")
    assert result.ok, result.message
    return [re.sub(r" +", " ", line.strip()) for line in result.output.splitlines()]


def constants(import_model: Import, made: object) -> dict[str, tuple[str, str, bytes]]:
    result = import_model(made, "--constants")
    assert result.ok, result.message
    found = {}
    for line in result.output.splitlines():
        name, dtype, dims, data = re.fullmatch(r"(\S+) (\S+) (\[.*\]) (\w*)", line).groups()  # type: ignore[union-attr]
        found[name] = (dtype, dims, bytes.fromhex(data))
    return found


# Constants

DTYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.INT32: "int32",
    TensorProto.UINT32: "uint32",
    TensorProto.INT64: "int64",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
}


def extremes(data_type: int) -> np.ndarray:
    """Five numbers of the type, its limits among them."""
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    if data_type == TensorProto.BOOL:
        return np.array([True, False, True, True, False])
    name = DTYPES[data_type]
    if "float" in name:
        info = ml_dtypes.finfo(dtype)
        return np.array([0.5, -1.25, info.max, info.tiny, 3.0], dtype)
    info = ml_dtypes.iinfo(dtype)
    return np.array([info.min, info.max, 0, 1, 5], dtype)


def packed(array: np.ndarray, data_type: int) -> bytes:
    """The elements in memory: little-endian, 4-bit ones in pairs, the first in the low half."""
    if "int4" not in DTYPES[data_type]:
        return array.tobytes()
    nibbles = [int(x) & 15 for x in array] + [0] * (len(array) % 2)
    return bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))


@pytest.mark.parametrize("data_type", DTYPES, ids=DTYPES.get)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_constants_of_every_type(import_model: Import, data_type: int, raw: bool) -> None:
    array = extremes(data_type)
    if raw:
        proto = numpy_helper.from_array(array, "w")
    else:
        proto = helper.make_tensor("w", data_type, [5], array)
        assert not proto.raw_data
    assert (numpy_helper.to_array(proto) == array).all()
    made = model([node("Foo", ["x", "w"], ["y"], domain="d")], initializers=[proto], domains=["d"])
    dtype, dims, data = constants(import_model, made)["w"]
    assert (dtype, dims) == (DTYPES[data_type], "[5]")
    assert data == packed(array, data_type)


@pytest.mark.parametrize("data_type", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64])
def test_elements_that_are_not_packed(import_model: Import, data_type: int) -> None:
    """Writers may spread a repeated field over several chunks and single elements."""
    array = np.array([1, 2, 3, 4], helper.tensor_dtype_to_np_dtype(data_type))
    head = field(1, 4) + field(2, data_type) + field(8, b"w")
    if data_type == TensorProto.INT64:
        chunks = field(7, b"\x01\x02") + field(7, 3) + field(7, b"\x04")
    else:
        number, wire = (4, 5) if data_type == TensorProto.FLOAT else (10, 1)
        items = [x.tobytes() for x in array]
        chunks = field(number, items[0] + items[1])
        chunks += bytes([number << 3 | wire]) + items[2] + field(number, items[3])
    proto = TensorProto.FromString(head + chunks)
    assert (numpy_helper.to_array(proto) == array).all()
    made = model([node("Add", ["x", "w"], ["y"])]).SerializeToString()
    graph = onnx.ModelProto.FromString(made).graph.SerializeToString() + field(5, head + chunks)
    content = field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 18))
    assert constants(import_model, content)["w"][2] == array.tobytes()


def test_shapes_of_constants(import_model: Import) -> None:
    arrays = {
        "scalar": np.float32(1.5),
        "empty": np.zeros([2, 0, 3], np.float32),
        "deep": np.zeros([1, 2, 1, 2, 1, 2, 1, 2], np.int64),
    }
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    made = model([node("Foo", ["x", *arrays], ["y"], domain="d")], domains=["d"])
    made.graph.initializer.extend(tensors)
    found = constants(import_model, made)
    for name, array in arrays.items():
        assert found[name][1:] == (str(list(np.shape(array))), np.asarray(array).tobytes())


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value_int": 3}, np.array(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
        ({"value_float": 0.5}, np.float32(0.5)),
        ({"value_floats": [0.5, 2.0]}, np.array([0.5, 2], np.float32)),
        (
            {"value": numpy_helper.from_array(np.arange(6).reshape(2, 3))},
            np.arange(6).reshape(2, 3),
        ),
    ],
    ids=str,
)
def test_constant_nodes(
    import_model: Import, attributes: dict[str, object], expected: np.ndarray
) -> None:
    nodes = [node("Constant", [], ["c"], **attributes), node("Add", ["x", "c"], ["y"])]
    dtype, dims, data = constants(import_model, model(nodes))["c"]
    assert (dtype, dims) == (str(expected.dtype), str(list(expected.shape)))
    assert data == expected.tobytes()


def test_an_initializer_that_is_an_input_too(import_model: Import) -> None:
    w = numpy_helper.from_array(np.ones(2, np.float32), "w")
    made = model([node("Add", ["x", "w"], ["y"])], ["x", "w"], initializers=[w])
    assert listing(import_model, made)[0] == "graph 'test': x float32 [rows, columns]"


# Names and shapes


def test_dimensions(import_model: Import) -> None:
    """Unnamed dimensions get symbols of their own; those of other values are not believed."""
    inputs = [value("x", ["n", None, 3]), value("z", [None, "n", "x.1"]), value("u", None)]
    made = model([node("Foo", ["x", "z", "u"], ["y"], domain="d")], inputs, domains=["d"])
    made.graph.value_info.append(value("y", [7]))
    header = listing(import_model, made)[0]
    first, second, third = re.findall(r"float32 (\[.*?\])", header)
    n, fresh, three = first[1:-1].split(", ")
    assert (n, three, third) == ("n", "3", "[...]")
    other, n2, named = second[1:-1].split(", ")
    assert n2 == "n"
    assert named == "x.1"
    assert len({n, fresh, other, named}) == 4
    assert "[7]" not in "".join(listing(import_model, made))


def test_identity_is_removed(import_model: Import) -> None:
    nodes = [
        node("Identity", ["x"], ["a"]),
        node("Identity", ["a"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Identity", ["c"], ["y"]),  # an output keeps its name
    ]
    lines = listing(import_model, model(nodes))
    assert lines[1:] == ["c = Relu(x)", "y = Identity(c)", "return y"]


def test_dead_nodes_are_removed(import_model: Import) -> None:
    nodes = [node("Neg", ["x"], ["a"]), node("Abs", ["a"], ["b"]), node("Relu", ["x"], ["y"])]
    assert listing(import_model, model(nodes))[1:] == ["y = Relu(x)", "return y"]


def test_omitted_inputs_and_outputs(import_model: Import) -> None:
    nodes = [
        node("Clip", ["x", "", "x"], ["a"]),
        node("Foo", ["a", "", ""], ["", "y", ""], domain="d"),
    ]
    lines = listing(import_model, model(nodes, domains=["d"]))
    assert lines[1:3] == ["a = Clip(x, _, x)", "_, y = d.Foo(a)"]


# Canonical forms: what older opsets write, and what comes out


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


SOFTMAX_2D = [
    "s/shape = Shape(x)",
    "s/flat = Flatten(x) {axis=1}",
    "s/result = Softmax(s/flat) {axis=-1}",
    "y = Reshape(s/result, s/shape)",
]


@pytest.mark.parametrize(
    ("opset", "made", "expected"),
    [
        (12, node("Squeeze", ["x"], ["y"], axes=[0, 2]), ["y = Squeeze(x, [0, 2])"]),
        (12, node("Squeeze", ["x"], ["y"]), ["y = Squeeze(x)"]),
        (12, node("Unsqueeze", ["x"], ["y"], axes=[0]), ["y = Unsqueeze(x, [0])"]),
        (12, node("ReduceSum", ["x"], ["y"], axes=[1]), ["y = ReduceSum(x, [1])"]),
        (17, node("ReduceMean", ["x"], ["y"], axes=[-1], keepdims=0),
         ["y = ReduceMean(x, [-1]) {keepdims=0}"]),
        (17, node("ReduceMax", ["x"], ["y"]), ["y = ReduceMax(x)"]),
        (12, node("Split", ["x"], ["y", "z"], split=[1, 2], axis=1),
         ["y, z = Split(x, [1, 2]) {axis=1}"]),
        (17, node("Split", ["x"], ["y", "z"]), ["y, z = Split(x) {num_outputs=2}"]),
        (18, node("Split", ["x"], ["y", "z"], num_outputs=2), ["y, z = Split(x) {num_outputs=2}"]),
        (10, node("Clip", ["x"], ["y"], min=0.0, max=6.0), ["y = Clip(x, 0, 6)"]),
        (10, node("Clip", ["x"], ["y"], max=6.0), ["y = Clip(x, _, 6)"]),
        (10, node("Clip", ["x"], ["y"]), ["y = Clip(x)"]),
        (9, node("Slice", ["x"], ["y"], starts=[0], ends=[5]), ["y = Slice(x, [0], [5])"]),
        (9, node("Slice", ["x"], ["y"], starts=[0], ends=[5], axes=[1]),
         ["y = Slice(x, [0], [5], [1])"]),
        (10, node("Pad", ["x"], ["y"], pads=[0, 1, 0, 1], value=2.0, mode="constant"),
         ["y = Pad(x, [0, 1, 0, 1], 2) {mode='constant'}"]),
        (9, node("TopK", ["x"], ["y", "i"], k=3), ["y, i = TopK(x, [3])"]),
        (12, node("Softmax", ["x"], ["y"], name="s"), SOFTMAX_2D),
        (12, node("Softmax", ["x"], ["y"], axis=-1), ["y = Softmax(x) {axis=-1}"]),
        (13, node("Softmax", ["x"], ["y"], axis=1), ["y = Softmax(x) {axis=1}"]),
        (12, node("LogSoftmax", ["x"], ["y"], name="s"),
         [line.replace("Softmax", "LogSoftmax") for line in SOFTMAX_2D]),
        (12, node("Hardmax", ["x"], ["y"], name="s"),
         [line.replace("Softmax", "Hardmax") for line in SOFTMAX_2D]),
        (11, node("Dropout", ["x"], ["y"], ratio=0.5, name="d"), ["y = Identity(x)"]),
        (13, node("Dropout", ["x", "x"], ["y", "z"], name="d"),
         ["y = Identity(x)", "d/shape = Shape(x)", "z = ConstantOfShape(d/shape) {value=[true]}"]),
        (13, node("Dropout", ["x", "", "flag"], ["y"], name="d"), ["y = Dropout(x, _, flag)"]),
        (13, node("BatchNormalization", ["x", "x", "x", "x", "x"], ["y"]),
         ["y = BatchNormalization(x, x, x, x, x)"]),
        (8, node("BatchNormalization", ["x", "x", "x", "x", "x"], ["y"], spatial=1),
         ["y = BatchNormalization(x, x, x, x, x)"]),
        (13, node("BatchNormalization", ["x", "x", "x", "x", "x"], ["y", "z"]),
         ["y, z = BatchNormalization(x, x, x, x, x) {training_mode=1}"]),
        (8, node("Upsample", ["x"], ["y"], scales=[1.0, 2.0], mode="nearest"),
         ["y = Resize(x, _, [1, 2]) {coordinate_transformation_mode='asymmetric', "
          "mode='nearest', nearest_mode='floor'}"]),
        (10, node("Resize", ["x", "flag"], ["y"]),
         ["y = Resize(x, _, flag) {coordinate_transformation_mode='asymmetric', "
          "nearest_mode='floor'}"]),
        (20, node("GroupNormalization", ["x", "x", "x"], ["y"], name="g", num_groups=2),
         ["g/shape = Shape(x)", "g/grouped = Reshape(x, [0, 2, -1])",
          "g/result = InstanceNormalization(g/grouped, x, x) {epsilon=1e-05}",
          "y = Reshape(g/result, g/shape)"]),
        (21, node("GroupNormalization", ["x", "x", "x"], ["y"], num_groups=2),
         ["y = GroupNormalization(x, x, x) {num_groups=2}"]),
        (9, node("Scatter", ["x", "x", "x"], ["y"]), ["y = ScatterElements(x, x, x)"]),
        (25, node("Gelu", ["x"], ["y"], approximate="tanh"), ["y = Gelu(x) {approximate='tanh'}"]),
    ],
)  # fmt: skip
def test_canonical_form(
    import_model: Import, opset: int, made: onnx.NodeProto, expected: list[str]
) -> None:
    outputs = [o for o in made.output if o]
    inputs = ["x", value("flag", (), TensorProto.BOOL)]
    lines = listing(import_model, model([made], inputs, outputs, opset=opset))
    assert lines[1:-1] == expected


# Bodies

FLAG = value("flag", (), TensorProto.BOOL)


def test_branches_capture(import_model: Import) -> None:
    """Captures by name, constants by value, removed Identity nodes looked through."""
    then = body([node("Add", ["alias", "w"], ["t"])], "t")
    other = body([node("Neg", ["x"], ["e"])], "e")
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Identity", ["r"], ["alias"]),
        node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    w = numpy_helper.from_array(np.float32(2), "w")
    lines = listing(import_model, model(nodes, ["x", FLAG], initializers=[w]))
    assert lines[1:] == [
        "r = Relu(x)",
        "y = If(flag) {else_branch=body, then_branch=body}",
        "else_branch 'body': uses x",
        "e = Neg(x)",
        "return e",
        "then_branch 'body': uses r",
        "t = Add(r, 2)",
        "return t",
        "return y",
    ]


def test_siblings_may_use_the_same_names(import_model: Import) -> None:
    branches = [body([node(op, ["x"], ["same"])], "same") for op in ("Relu", "Neg")]
    nodes = [node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    assert import_model(model(nodes, ["x", FLAG])).ok


def test_captures_pass_through_the_levels(import_model: Import) -> None:
    inner = body([node("Relu", ["r"], ["i"])], "i")
    second = body([node("Neg", ["x"], ["j"])], "j")
    then = body([node("If", ["flag"], ["t"], then_branch=inner, else_branch=second)], "t")
    other = body([node("Abs", ["x"], ["e"])], "e")
    nodes = [
        node("Exp", ["x"], ["r"]),
        node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    lines = listing(import_model, model(nodes, ["x", FLAG]))
    uses = [line for line in lines if "uses" in line]
    assert "then_branch 'body': uses r" in uses
    outer = next(line for line in uses if line.count(",") == 2)
    assert set(outer.split("uses ")[1].split(", ")) == {"flag", "r", "x"}


def test_a_loop(import_model: Import) -> None:
    names = ["i", "c", "v"]
    nodes = [node("Identity", ["c"], ["k"]), node("Add", ["v", "x"], ["s"])]
    step = helper.make_graph(
        nodes, "step", [value(n, None) for n in names], [value("k", None), value("s", None)]
    )
    made = model(
        [node("Loop", ["n", "", "x"], ["y"], body=step)], ["x"], initializers=[ints("n", 3)]
    )
    lines = listing(import_model, made)
    assert lines[1] == "y = Loop([3], _, x) {body=step}"
    assert lines[2] == "body 'step': i ? [...], c ? [...], v ? [...]; uses x"
    assert lines[4] == "s = Add(v, x)"


# Functions


def test_functions_are_inlined(import_model: Import) -> None:
    """Names are made unique by the call, attributes passed, defaults taken, opsets respected."""
    scale = helper.make_node("LeakyRelu", ["s"], ["t"])
    ref = scale.attribute.add()
    ref.name, ref.ref_attr_name, ref.type = "alpha", "slope", onnx.AttributeProto.FLOAT
    nodes = [
        node("Add", ["a", "b"], ["s"], name="sum"),
        scale,
        node("Unsqueeze", ["t"], ["o"], axes=[0]),  # as opset 12 writes it
    ]
    inner = helper.make_function(
        "local", "Inner", ["a", "b"], ["o"], nodes, [helper.make_opsetid("", 12)], ["slope"]
    )
    call = node("Inner", ["p", "p"], ["q"], domain="local", name="in", slope=0.5)
    outer = helper.make_function(
        "local", "Outer", ["p"], ["q"], [call], [helper.make_opsetid("local", 1)]
    )
    calls = [
        node("Outer", ["x"], ["m"], domain="local", name="first"),
        node("Inner", ["m", "x"], ["y"], domain="local", name="second"),
    ]
    made = model(calls, functions=[inner, outer], domains=["local"])
    assert listing(import_model, made)[1:] == [
        "first/in/s = Add(x, x)",
        "first/in/t = LeakyRelu(first/in/s) {alpha=0.5}",
        "m = Unsqueeze(first/in/t, [0])",
        "second/s = Add(m, x)",
        "second/t = LeakyRelu(second/s)",
        "y = Unsqueeze(second/t, [0])",
        "return y",
    ]


def test_names_of_inlined_values_avoid_those_of_the_graph(import_model: Import) -> None:
    nodes = [node("Neg", ["a"], ["t"]), node("Relu", ["t"], ["o"])]
    called = helper.make_function("local", "F", ["a"], ["o"], nodes, [helper.make_opsetid("", 18)])
    made = model(
        [
            node("Abs", ["x"], ["call/t"]),
            node("F", ["call/t"], ["m"], domain="local", name="call"),
            node("F", ["m"], ["y"], domain="local", name="call"),
        ],
        functions=[called],
        domains=["local"],
    )
    lines = listing(import_model, made)[1:-1]
    outputs = [line.split(" = ")[0] for line in lines]
    assert len(set(outputs)) == len(outputs) == 5


def test_a_function_that_returns_its_input(import_model: Import) -> None:
    called = helper.make_function("local", "F", ["a"], ["a"], [], [helper.make_opsetid("", 18)])
    nodes = [node("F", ["x"], ["m"], domain="local"), node("Relu", ["m"], ["y"])]
    made = model(nodes, functions=[called], domains=["local"])
    assert listing(import_model, made)[1:] == ["y = Relu(x)", "return y"]


def test_a_branch_in_a_function(import_model: Import) -> None:
    then = body([node("Relu", ["inner"], ["t"])], "t")
    other = body([node("Neg", ["a"], ["e"])], "e")
    nodes = [
        node("Abs", ["a"], ["inner"]),
        node("If", ["c"], ["o"], then_branch=then, else_branch=other),
    ]
    called = helper.make_function(
        "local", "F", ["a", "c"], ["o"], nodes, [helper.make_opsetid("", 18)]
    )
    call = node("F", ["x", "flag"], ["y"], domain="local", name="call")
    made = model([call], ["x", FLAG], functions=[called], domains=["local"])
    lines = listing(import_model, made)
    assert "then_branch 'body': uses call/inner" in lines
    assert "call/t = Relu(call/inner)" in lines


# com.microsoft


def test_matmul_nbits_is_a_linear_layer_on_the_same_bytes(import_model: Import) -> None:
    """Zero points of 3 blocks fill two bytes a row; 80 of 96 columns are used."""
    rng = np.random.default_rng(1)
    initializers = [
        numpy_helper.from_array(rng.integers(0, 256, (8, 3, 16), np.uint8), "B"),
        numpy_helper.from_array(np.ones(24, np.float32), "scales"),
        numpy_helper.from_array(rng.integers(0, 256, 16, np.uint8), "zeros"),
        numpy_helper.from_array(np.ones(8, np.float32), "bias"),
    ]
    sizes = {"K": 80, "N": 8, "bits": 4, "block_size": 32}
    for inputs, operands, zero in [
        (["x", "B", "scales"], "_, _, n/scales float32 [8, 3]", ", zero_point=8"),
        (
            ["x", "B", "scales", "zeros", "", "bias"],
            "bias float32 [8], _, n/scales float32 [8, 3], n/zero_points uint4 [8, 4]",
            "",
        ),
    ]:
        node = helper.make_node(
            "MatMulNBits", inputs, ["y"], name="n", domain="com.microsoft", **sizes
        )
        file = model([node], initializers=initializers, domains=["com.microsoft"])
        result = import_model(file, "--dump")
        expected = f"y = kvik.Linear(x, n/B uint4 [8, 96], {operands}) "
        assert expected in result.output
        attributes = f"{{activation='none', axis=1, block=32, k=80, trans_w=1{zero}}}"
        assert attributes in result.output
