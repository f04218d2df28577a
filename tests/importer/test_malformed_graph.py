"""Graphs that break the rules: order, names, attributes, bodies, functions."""

from __future__ import annotations

import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

from .conftest import SANITIZED, Import
from .models import body, field, model, value, wire_graph, wire_model

INVALID = "invalid model"
UNSUPPORTED = "unsupported"
BUDGET = "out of memory"

node = helper.make_node


def test_unsorted_nodes_are_sorted(import_model: Import) -> None:
    nodes = [
        node("Add", ["b", "a"], ["y"]),
        node("Relu", ["a"], ["b"]),
        node("Neg", ["x"], ["a"]),
    ]
    output = import_model(model(nodes), "--dump").output
    ops = [line.split(" = ")[1].split("(")[0] for line in output.splitlines() if " = " in line]
    assert ops == ["Neg", "Relu", "Add"]


def test_cycle(import_model: Import) -> None:
    nodes = [
        node("Neg", ["x"], ["start"], name="before"),
        node("Add", ["start", "c"], ["b"], name="one"),
        node("Relu", ["b"], ["c"], name="two"),
        node("Relu", ["c"], ["y"], name="after"),
    ]
    result = import_model(model(nodes))
    result.expect_error(INVALID, "cycle")
    assert "'one'" in result.message or "'two'" in result.message


def test_node_that_feeds_itself(import_model: Import) -> None:
    nodes = [node("Add", ["x", "y"], ["y"], name="self")]
    import_model(model(nodes)).expect_error(INVALID, "'self'", "cycle")


def test_cycle_of_identities(import_model: Import) -> None:
    nodes = [
        node("Identity", ["b"], ["a"]),
        node("Identity", ["a"], ["b"]),
        node("Add", ["x", "a"], ["y"]),
    ]
    import_model(model(nodes)).expect_error(INVALID, "cycle")


def test_cycle_through_a_branch(import_model: Import) -> None:
    """The branch uses what the If itself feeds."""
    branch = body([node("Relu", ["later"], ["r"])], "r")
    other = body([node("Relu", ["x"], ["s"])], "s")
    nodes = [
        node("If", ["flag"], ["chosen"], name="choice", then_branch=branch, else_branch=other),
        node("Relu", ["chosen"], ["later"], name="follower"),
        node("Neg", ["later"], ["y"]),
    ]
    inputs = ["x", value("flag", (), TensorProto.BOOL)]
    import_model(model(nodes, inputs)).expect_error(INVALID, "cycle")


def test_output_defined_twice(import_model: Import) -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])]
    import_model(model(nodes)).expect_error(INVALID, "'y' is defined twice")
    twice = [node("Split", ["x"], ["y", "y"], num_outputs=2)]
    import_model(model(twice)).expect_error(INVALID, "'y' is defined twice")
    import_model(model([node("Relu", ["x"], ["x"])])).expect_error(INVALID, "'x' is defined twice")


def test_input_twice(import_model: Import) -> None:
    made = model([node("Relu", ["x"], ["y"])], ["x", "x"])
    import_model(made).expect_error(INVALID, "input 'x' is there twice")


def test_output_listed_twice(import_model: Import) -> None:
    made = model([node("Relu", ["x"], ["y"])], outputs=["y", "y"])
    import_model(made).expect_error(INVALID, "output 'y' is listed twice")


@pytest.mark.parametrize("name", ["x", "outer", "later"])
def test_shadowed_outer_name(import_model: Import, name: str) -> None:
    branch = body([node("Relu", ["x"], [name])], name)
    other = body([node("Relu", ["x"], ["s"])], "s")
    nodes = [
        node("Relu", ["x"], ["outer"]),
        node("If", ["flag"], ["y"], then_branch=branch, else_branch=other),
        node("Relu", ["y"], ["later"]),
    ]
    inputs = ["x", value("flag", (), TensorProto.BOOL)]
    import_model(model(nodes, inputs)).expect_error(INVALID, f"'{name}'", "enclosing graph")


def test_undefined_names(import_model: Import) -> None:
    import_model(model([node("Add", ["x", "nobody"], ["y"], name="sum")])).expect_error(
        INVALID, "Add node 'sum'", "input 'nobody'"
    )
    made = model([node("Relu", ["x"], ["z"])], outputs=["missing"])
    import_model(made).expect_error(INVALID, "output 'missing'")


def test_no_graph_and_no_outputs(import_model: Import) -> None:
    made = model([node("Relu", ["x"], ["y"])])
    del made.graph.output[:]
    import_model(made).expect_error(INVALID, "no outputs")
    made.ClearField("graph")
    import_model(made).expect_error(INVALID, "no graph")


def test_input_types(import_model: Import) -> None:
    relu = [node("Relu", ["x"], ["y"])]
    import_model(model(relu, [value("x", [-2])])).expect_error(INVALID, "'x'", "-2")
    import_model(model(relu, [value("x", [1] * 9)])).expect_error(UNSUPPORTED, "'x'", "9 dim")
    untyped = onnx.ValueInfoProto(name="x")
    import_model(model(relu, [untyped])).expect_error(INVALID, "'x' has no type")
    strings = value("x", [1], TensorProto.STRING)
    import_model(model(relu, [strings])).expect_error(UNSUPPORTED, "'x'", "STRING")
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    import_model(model(relu, [sequence])).expect_error(UNSUPPORTED, "'x' is no tensor")


def test_nameless_things(import_model: Import) -> None:
    import_model(model([node("", ["x"], ["y"], name="n")])).expect_error(INVALID, "'n'", "op_type")
    made = model([node("Relu", ["x"], ["y"])], [value("", [1]), "x"])
    import_model(made).expect_error(INVALID, "input without a name")
    unnamed = helper.make_node("Softmax", ["x"], ["y"], name="n", axis=1)
    unnamed.attribute[0].name = ""
    import_model(model([unnamed])).expect_error(INVALID, "Softmax node 'n'", "without a name")


# Attributes


def softmax(*attributes: AttributeProto) -> onnx.ModelProto:
    made = node("Softmax", ["x"], ["y"], name="soft")
    made.attribute.extend(attributes)
    return model([made])


AXIS = helper.make_attribute("axis", 1)


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ([AXIS, AXIS], "attribute 'axis' is there twice"),
        ([helper.make_attribute("axis", 1.0)], "type FLOAT, expected INT"),
        ([helper.make_attribute("axis", [1])], "type INTS, expected INT"),
        ([helper.make_attribute("axis", "1")], "type STRING, expected INT"),
        ([AttributeProto(name="axis", i=1)], "type UNDEFINED, expected INT"),
        ([AttributeProto(name="other", i=1)], "'other' has no type"),
        ([AttributeProto(name="other", i=1, type=1)], "declared FLOAT and holds INT"),
        ([AttributeProto(name="axis", ref_attr_name="a", type=2)], "outside of any"),
        ([AttributeProto(name="other", type=4)], "declared TENSOR and holds nothing"),
        ([AttributeProto(name="other", type=5)], "declared GRAPH and holds nothing"),
    ],
)
def test_attribute(import_model: Import, attributes: list[AttributeProto], named: str) -> None:
    import_model(softmax(*attributes)).expect_error(INVALID, "Softmax node 'soft'", named)


def test_attribute_of_two_values(import_model: Import) -> None:
    both = AttributeProto(name="axis", i=1, f=1.0, type=2)
    import_model(softmax(both)).expect_error(INVALID, "both FLOAT and INT")


def test_attribute_of_no_type_that_exists(import_model: Import) -> None:
    attribute = field(1, b"other") + field(20, 99)
    bad = field(1, b"x") + field(2, b"z") + field(4, b"Relu") + field(5, attribute)
    import_model(wire_model(field(1, bad) + wire_graph())).expect_error(INVALID, "type 99")


@pytest.mark.parametrize(
    "attributes", [{}, {"value_int": 1, "value_float": 1.0}, {"axis": 1}], ids=str
)
def test_constant_without_one_value(import_model: Import, attributes: dict[str, object]) -> None:
    nodes = [node("Constant", [], ["c"], name="con", **attributes), node("Add", ["x", "c"], ["y"])]
    import_model(model(nodes)).expect_error(INVALID, "Constant node 'con'")


def test_error_in_a_tensor_attribute_names_the_node(import_model: Import) -> None:
    bad = TensorProto(dims=[3], data_type=1, raw_data=bytes(4))
    nodes = [node("Constant", [], ["c"], name="con", value=bad), node("Add", ["x", "c"], ["y"])]
    import_model(model(nodes)).expect_error(
        INVALID, "Constant node 'con': attribute 'value'", "4 bytes, float32 [3] needs 12"
    )


# Bodies


def graph_attribute(name: str, graph: bytes) -> bytes:
    return field(5, field(1, name.encode()) + field(6, graph) + field(20, 5))


def nested(op: str, depth: int) -> bytes:
    """Bodies within one another, by hand: protobuf's own library stops at 32 levels or so."""

    def names(*fields: tuple[int, str]) -> bytes:
        return b"".join(field(number, text.encode()) for number, text in fields)

    def graph(nodes: bytes, inputs: list[str], outputs: list[str]) -> bytes:
        ends = [field(11, names((1, i))) for i in inputs] + [
            field(12, names((1, o))) for o in outputs
        ]
        return nodes + b"".join(ends)

    def inputs_of(level: int) -> list[str]:
        counts = {"If": [], "Loop": [f"i{level}", f"c{level}"], "Scan": []}[op]
        return counts + ([] if op == "If" else [f"v{level}"])

    inner = field(1, names((1, "x"), (2, f"r{depth}"), (4, "Relu")))
    for level in range(depth, 0, -1):
        keep = field(1, names((1, f"c{level}"), (2, f"k{level}"), (4, "Identity")))
        outputs = ([f"k{level}"] if op == "Loop" else []) + [f"r{level}"]
        content = graph(inner + (keep if op == "Loop" else b""), inputs_of(level), outputs)
        other = graph(field(1, names((1, "x"), (2, f"e{level}"), (4, "Neg"))), [], [f"e{level}"])
        result = "y" if level == 1 else f"r{level - 1}"
        made = {
            "If": names((1, "flag"))
            + graph_attribute("then_branch", content)
            + graph_attribute("else_branch", other),
            "Loop": names((1, ""), (1, "flag"), (1, "x")) + graph_attribute("body", content),
            "Scan": names((1, "x")) + graph_attribute("body", content),
        }[op]
        inner = field(1, made + names((2, result), (4, op)))
    x = field(1, b"x") + field(2, field(1, field(1, 1)))
    flag = field(1, b"flag") + field(2, field(1, field(1, TensorProto.BOOL)))
    return wire_model(inner + field(11, x) + field(11, flag) + field(12, field(1, b"y")))


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_depth_of_bodies(import_model: Import, op: str) -> None:
    assert import_model(nested(op, 32)).ok
    import_model(nested(op, 33)).expect_error(INVALID, f"{op} node", "more than 32 graphs")


def test_chain_of_if_is_linear(import_model: Import) -> None:
    """Reading a body twice at each level would take 2^25 steps."""
    result = import_model(nested("If", 25))
    assert result.ok
    if not SANITIZED:
        assert result.seconds < 0.1


# Functions


def function(
    name: str, nodes: list[onnx.NodeProto], domains: tuple[str, ...] = ("local",)
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18)] + [helper.make_opsetid(d, 1) for d in domains]
    return helper.make_function("local", name, ["a"], ["b"], nodes, opsets)


CALL = node("F0", ["x"], ["y"], domain="local", name="call")


def test_recursive_function(import_model: Import) -> None:
    again = function("F0", [node("F0", ["a"], ["b"], domain="local")])
    made = model([CALL], functions=[again], domains=["local"])
    import_model(made).expect_error(INVALID, "local.F0 calls itself", "'call/b'")


def test_functions_that_call_each_other(import_model: Import) -> None:
    first = function("F0", [node("F1", ["a"], ["b"], domain="local")])
    second = function("F1", [node("F0", ["a"], ["b"], domain="local")])
    made = model([CALL], functions=[first, second], domains=["local"])
    import_model(made).expect_error(INVALID, "local.F0 calls itself")


def test_recursion_through_a_branch(import_model: Import) -> None:
    then = body([node("F0", ["a"], ["t"], domain="local")], "t")
    other = body([node("Relu", ["a"], ["e"])], "e")
    choice = node("If", ["a"], ["b"], then_branch=then, else_branch=other)
    made = model([CALL], functions=[function("F0", [choice])], domains=["local"])
    import_model(made).expect_error(INVALID, "local.F0 calls itself")


def test_function_that_is_recursive_but_never_called(import_model: Import) -> None:
    """Nothing is lost: it takes no part in the model."""
    again = function("F0", [node("F0", ["a"], ["b"], domain="local")])
    made = model([node("Relu", ["x"], ["y"])], functions=[again], domains=["local"])
    assert import_model(made).ok


@pytest.mark.parametrize("leaf", ["Relu", "empty"])
def test_functions_that_double(import_model: Import, leaf: str) -> None:
    """40 levels of two calls each would be 2^40 nodes, or as many calls of nothing."""

    def twice(level: int) -> onnx.FunctionProto:
        callee = f"F{level + 1}"
        return function(
            f"F{level}",
            [
                node(callee, ["a"], ["m"], domain="local"),
                node(callee, ["m"], ["b"], domain="local"),
            ],
        )

    last = function("F40", [node("Relu", ["a"], ["b"])])
    if leaf == "empty":
        last = helper.make_function("local", "F40", ["a"], ["a"], [], last.opset_import)
    functions = [twice(level) for level in range(40)] + [last]
    made = model([CALL], functions=functions, domains=["local"])
    import_model(made).expect_error(BUDGET)


def test_function_depth(import_model: Import) -> None:
    count = 102
    functions = [
        function(f"F{i}", [node(f"F{i + 1}", ["a"], ["b"], domain="local")]) for i in range(count)
    ]
    functions.append(function(f"F{count}", [node("Relu", ["a"], ["b"])]))
    made = model([CALL], functions=functions, domains=["local"])
    import_model(made).expect_error(INVALID, "more than 100 calls")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (node("F0", ["x", "x"], ["y"], domain="local", name="c"), "2 inputs, its function has 1"),
        (node("F0", ["x"], ["y", "z"], domain="local", name="c"), "2 outputs, its function has 1"),
        (node("F0", ["gone"], ["y"], domain="local", name="c"), "input 'gone'"),
    ],
)
def test_calls(import_model: Import, call: onnx.NodeProto, named: str) -> None:
    relu = function("F0", [node("Relu", ["a"], ["b"])])
    made = model([call], functions=[relu], domains=["local"])
    import_model(made).expect_error(INVALID, "local.F0 node 'c'", named)


def test_broken_functions(import_model: Import) -> None:
    relu = function("F0", [node("Relu", ["a"], ["b"])])
    made = model([CALL], functions=[relu, relu], domains=["local"])
    import_model(made).expect_error(INVALID, "local.F0", "defined twice")
    nothing = function("F0", [node("Relu", ["a"], ["other"])])
    made = model([CALL], functions=[nothing], domains=["local"])
    import_model(made).expect_error(INVALID, "'call'", "output 'b' is never produced")
    outer = function("F0", [node("Add", ["a", "x"], ["b"])])  # x is the caller's
    made = model([CALL], functions=[outer], domains=["local"])
    import_model(made).expect_error(INVALID, "input 'x' is not defined")
