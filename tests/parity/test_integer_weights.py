"""Weights that a file stores as integers: DequantizeLinear and MatMulNBits in every granularity,
against numpy's own dequantisation and onnxruntime."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import kvik
from kvik import _core

VOCAB = 200
K, N = 96, 80  # three groups of 32; a multiple of no panel
NUMPY = {"int8": np.int8, "uint8": np.uint8, "int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}
RANGE = {"int8": (-128, 128), "uint8": (0, 256), "int4": (-8, 8), "uint4": (0, 16)}


def initializer(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array, name)


def language_model(
    nodes: list[onnx.NodeProto], initializers: list[TensorProto], *, domains: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """ids -> Gather in `embedding` [VOCAB, K] -> the nodes, which make "logits" of "x"."""
    table = np.random.default_rng(1).standard_normal((VOCAB, K)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["embedding", "ids"], ["x"]), *nodes],
        "test",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", N])],
        [initializer("embedding", table), *initializers],
    )
    opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(item, 1) for item in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model


def run_onnxruntime(model: onnx.ModelProto, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"ids": ids[None]})[0][0]


def load(model: onnx.ModelProto, **options: object) -> _core.Model:
    return _core.Model.from_bytes(model.SerializeToString(), **options)


def logits_of(model: _core.Model, ids: np.ndarray) -> np.ndarray:
    return model.forward([(model.new_sequence(), ids, _core.Logits.ALL)])


def precision_of(model: _core.Model) -> str:
    (found,) = {item.weights for item in model.matrices() if item.multiplied}
    return found


def expand(steps: np.ndarray, shape: tuple[int, int], axis: int, block: int) -> np.ndarray:
    """Scales or zero points for every element of a matrix."""
    if steps.size == 1:
        return np.broadcast_to(steps.reshape(()), shape)
    if block:
        return np.repeat(steps, block, axis=axis)[: shape[0], : shape[1]]
    return np.broadcast_to(np.expand_dims(steps, 1 - axis), shape)


def error_bound(x: np.ndarray, w: np.ndarray, precision: str) -> np.ndarray:
    """How far products of x [rows, K] and w [K, N] may be off, float64 [rows, N].

    fp32: a rounding of 2**-24 for each of the K sums. Rows of inputs become multiples of 1/127 of
    their largest element: each is off by at most half of that, uniformly, and such errors add up as
    the root of their squares; 6 standard deviations are allowed. Scales of int4 are rounded to
    binary16.
    """
    sums = np.abs(x) @ np.abs(w)
    bound = len(w) * 2.0**-24 * sums
    if precision != "f32":
        step = np.abs(x).max(axis=1, keepdims=True) / 127
        bound = bound + 6 * step * np.sqrt((w**2).sum(axis=0) / 12)
    if precision == "int4":
        bound = bound + 2.0**-11 * sums
    return bound


# dtype, transposed, axis that the scales belong to (None: one for all), block, zero point,
# precision that the engine runs it in
FORMS = [
    ("int8", False, 1, 0, None, "int8"),
    ("int8", True, 0, 0, None, "int8"),
    ("int8", True, -2, 0, 0, "int8"),
    ("int8", False, None, 0, None, "int8"),
    ("uint8", False, 1, 0, 128, "int8"),
    ("uint8", True, 0, 0, "any", "f32"),
    ("uint8", True, 0, 0, None, "f32"),
    ("int8", False, 0, 0, None, "f32"),
    ("int8", False, 0, 32, None, "f32"),
    ("int8", False, 1, 16, None, "f32"),
    ("int8", False, 0, K, None, "int8"),
    ("int4", False, 0, 32, None, "int4"),
    ("int4", True, 1, 32, None, "int4"),
    ("int4", True, -1, 32, 0, "int4"),
    ("int4", True, 1, 64, None, "int4"),
    ("int4", False, 1, 0, None, "int4"),
    ("int4", False, 0, 16, None, "f32"),
    ("int4", False, 0, 32, "any", "f32"),
    ("uint4", True, 1, 32, 8, "int4"),
    ("uint4", False, 0, 32, "any", "f32"),
    ("uint4", False, 0, 32, None, "f32"),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_dequantize_linear(form, kind):
    dtype, transposed, axis, block, zero, precision = form
    generator = np.random.default_rng(3)
    shape = (N, K) if transposed else (K, N)
    q = generator.integers(*RANGE[dtype], shape)
    if axis is None:
        steps_shape: tuple[int, ...] = ()
    elif block:
        steps_shape = tuple(-(-size // block) if index == axis % 2 else size
                            for index, size in enumerate(shape))  # fmt: skip
    else:
        steps_shape = (shape[axis],)
    scale = generator.uniform(0.01, 0.1, steps_shape).astype(np.float32)
    scale *= generator.choice([-1, 1], steps_shape).astype(np.float32)
    zeros = np.zeros(steps_shape, np.int64)
    if zero is not None:
        zeros = (generator.integers(*RANGE[dtype], steps_shape) if zero == "any"
                 else np.full(steps_shape, zero))  # fmt: skip
    w = (q - expand(zeros, shape, (axis or 0) % 2, block)).astype(np.float64)
    w *= expand(scale, shape, (axis or 0) % 2, block)

    tensors = [initializer("w", q.astype(NUMPY[dtype])), initializer("scale", scale)]
    inputs = ["w", "scale"]
    if zero is not None:
        tensors.append(initializer("zero", np.asarray(zeros).astype(NUMPY[dtype])))
        inputs.append("zero")
    attributes = {} if axis is None else {"axis": axis}
    if block:
        attributes["block_size"] = block
    nodes = [helper.make_node("DequantizeLinear", inputs, ["floats"], **attributes)]
    if kind == "Gemm":
        tensors += [
            initializer("flat", np.array([-1, K])),
            initializer("back", np.array([1, -1, N])),
        ]
        nodes += [
            helper.make_node("Reshape", ["x", "flat"], ["rows"]),
            helper.make_node("Gemm", ["rows", "floats"], ["product"], transB=int(transposed)),
            helper.make_node("Reshape", ["product", "back"], ["logits"]),
        ]
    else:
        if transposed:
            nodes.append(helper.make_node("Transpose", ["floats"], ["turned"], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", ["x", "turned" if transposed else "floats"],
                                      ["logits"]))  # fmt: skip
    model = language_model(nodes, tensors)

    ids = np.arange(11)
    table = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    expected = table[ids] @ (w.T if transposed else w)
    loaded = load(model)
    assert precision_of(loaded) == precision
    w = w.T if transposed else w
    found = logits_of(loaded, ids)
    assert (np.abs(found - expected) <= error_bound(table[ids], w, precision)).all()
    # onnxruntime makes a MatMulNBits of some, which rounds inputs to 8 bits too.
    theirs = run_onnxruntime(model, ids)
    assert (np.abs(theirs - expected) <= error_bound(table[ids], w, "int8")).all()
    if precision == "f32":  # widened weights take the precision that is asked for
        asked = "int8" if dtype.endswith("8") else "bf16"
        assert precision_of(load(model, weights=asked)) == asked
    else:  # stored integers run as they are
        for asked in ("bf16", "int8", "int4"):
            again = load(model, weights=asked)
            assert precision_of(again) == precision
    # Unfused, the nodes run one by one, in fp32.
    plain = load(model, optimize=False)
    assert (np.abs(logits_of(plain, ids) - expected) <= error_bound(table[ids], w, "f32")).all()


@pytest.mark.parametrize("dtype", ["int8", "uint4"])
@pytest.mark.parametrize("block", [0, 32, 40])
def test_a_table_of_integers_is_read_row_by_row(dtype, block):
    """Rows of any granularity are exactly those that numpy dequantises."""
    generator = np.random.default_rng(5)
    q = generator.integers(*RANGE[dtype], (VOCAB, N))
    steps = (VOCAB, -(-N // block)) if block else (VOCAB,)
    scale = generator.uniform(0.01, 0.1, steps).astype(np.float32)
    zero = generator.integers(0, 8, steps)
    axis = 1 if block else 0
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["table"], axis=axis,
                         block_size=block),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Identity", ["rows"], ["logits"]),
    ]  # fmt: skip
    tensors = [
        initializer("w", q.astype(NUMPY[dtype])),
        initializer("scale", scale),
        initializer("zero", zero.astype(NUMPY[dtype])),
    ]
    model = language_model(nodes, tensors)
    ids = np.array([0, 7, VOCAB - 1, 7])
    expected = (q - expand(zero, q.shape, axis, block)).astype(np.float32)
    expected *= expand(scale, q.shape, axis, block)
    loaded = load(model, weights="int4")
    assert "kvik.Embedding(w" in loaded.dump(_core.GraphStage.ROWS)
    assert np.array_equal(logits_of(loaded, ids), expected[ids])
    with pytest.raises(kvik.InvalidArgumentError, match="token id"):
        logits_of(loaded, np.array([VOCAB]))


def pack(q: np.ndarray, bits: int) -> np.ndarray:
    """Integers [..., columns] as bytes, low bits first, rows padded to whole bytes."""
    if bits == 8:
        return q.astype(np.uint8)
    if q.shape[-1] % 2:
        q = np.concatenate([q, np.zeros((*q.shape[:-1], 1), q.dtype)], axis=-1)
    return (q[..., 0::2] | (q[..., 1::2] << 4)).astype(np.uint8)


def nbits_model(
    bits: int, block: int, zero: str, k: int = K, *, bias: bool = False, flat: bool = False
) -> tuple[onnx.ModelProto, np.ndarray]:
    """MatMulNBits of random weights, and these weights [K, N] in float64."""
    generator = np.random.default_rng(9)
    blocks = -(-k // block)
    q = generator.integers(0, 2**bits, (N, blocks * block))
    scale = generator.uniform(0.01, 0.1, (N, blocks)).astype(np.float32)
    tensors = [
        initializer("B", pack(q.reshape(N, blocks, block), bits)),
        initializer("scales", scale.reshape(-1) if flat else scale),
    ]
    inputs = ["x", "B", "scales", "", "", ""]
    zeros = np.full((N, blocks), 2.0 ** (bits - 1))
    if zero != "none":
        zeros = generator.integers(0, 2**bits, (N, blocks)).astype(np.float64)
        if zero == "middle":
            zeros[:] = 2 ** (bits - 1)
        if zero == "float":
            zeros += 0.25
            stored = zeros.astype(np.float32)
        else:
            stored = pack(zeros.astype(np.int64), bits)
        tensors.append(initializer("zeros", stored.reshape(-1) if flat else stored))
        inputs[3] = "zeros"
    if bias:
        tensors.append(initializer("bias", generator.standard_normal(N).astype(np.float32)))
        inputs[5] = "bias"
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(
        "MatMulNBits", inputs, ["logits"], domain="com.microsoft", K=k, N=N, bits=bits,
        block_size=block, accuracy_level=0,
    )  # fmt: skip
    nodes = [node]
    if k != K:
        tensors.append(initializer("columns", np.arange(k)))
        node.input[0] = "some"
        nodes.insert(0, helper.make_node("Gather", ["x", "columns"], ["some"], axis=2))
    w = (q - np.repeat(zeros, block, axis=1)) * np.repeat(scale.astype(np.float64), block, axis=1)
    return language_model(nodes, tensors, domains=("com.microsoft",)), w[:, :k].T


@pytest.mark.parametrize(
    ("bits", "block", "zero", "k", "precision"),
    [
        (4, 32, "none", K, "int4"),
        (4, 32, "middle", K, "int4"),
        (4, 32, "packed", K, "f32"),
        (4, 64, "none", K, "int4"),  # the last block is padded
        (4, 128, "none", K, "int4"),
        (4, 16, "none", K, "f32"),
        (4, 32, "none", 71, "int4"),
        (4, 32, "packed", 71, "f32"),
        (8, 32, "none", K, "f32"),
        (8, 128, "none", K, "int8"),
        (8, 32, "packed", K, "f32"),
    ],
)
def test_matmul_nbits(bits, block, zero, k, precision):
    model, w = nbits_model(bits, block, zero, k, bias=zero == "none", flat=block == 32)
    ids = np.arange(13)
    table = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)[ids, :k]
    expected = table @ w
    if zero == "none":
        expected += numpy_helper.to_array(model.graph.initializer[3]).astype(np.float64)
    loaded = load(model)
    assert precision_of(loaded) == precision
    assert loaded.info.incremental
    (matrix,) = (item for item in loaded.matrices() if item.multiplied)
    assert (matrix.shape, matrix.channel_axis, matrix.stored) == ((N, k), 0, True)
    if precision == "f32":
        with pytest.raises(kvik.InvalidArgumentError, match="not kept as integers"):
            loaded.integers(matrix)
    else:
        integers, scales = loaded.integers(matrix)
        steps = np.repeat(scales, 32, axis=1)[:, :k] if precision == "int4" else scales
        np.testing.assert_allclose((integers * steps).T, w, rtol=2.0**-11)
    found = logits_of(loaded, ids)
    assert (np.abs(found - expected) <= error_bound(table, w, precision)).all()
    theirs = run_onnxruntime(model, ids)
    assert (np.abs(theirs - expected) <= error_bound(table, w, "int8")).all()


def test_matmul_nbits_with_float_zero_points():
    model, w = nbits_model(4, 32, "float")
    ids = np.arange(13)
    table = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)[ids]
    np.testing.assert_allclose(logits_of(load(model), ids), table @ w, rtol=1e-4, atol=1e-4)


def test_matmul_nbits_in_float16():
    model, _ = nbits_model(4, 32, "none")
    scales = numpy_helper.to_array(model.graph.initializer[2]).astype(np.float16)
    model.graph.initializer[2].CopyFrom(initializer("scales", scales))
    model.graph.node[1].input[0] = "half"
    model.graph.node[1].output[0] = "halves"
    cast = helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["halves"], ["logits"], to=TensorProto.FLOAT)
    model.graph.node.insert(1, cast)
    model.graph.node.append(back)
    loaded = load(model)
    assert precision_of(loaded) == "int4"
    ids = np.arange(13)
    theirs = run_onnxruntime(model, ids)
    assert np.abs(logits_of(loaded, ids) - theirs).max() <= 0.02 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 24}, "block_size is 24; expected a power of two"),
        ({"block_size": 8}, "block_size is 8"),
        ({"block_size": 2**62}, "B has shape"),
        ({"bits": 2}, "weights of 2 bits are not supported"),
        ({"bits": 8}, "B has shape"),
        ({"K": 0}, "attribute 'K' is 0"),
        ({"K": 2**63 - 1}, "K is"),
        ({"K": K + 1}, "B has shape"),
        ({"N": N + 1}, "B has shape"),
        ({"N": 2**62}, "B has shape"),
        ({"N": -1}, "attribute 'N' is -1"),
    ],
)
def test_matmul_nbits_of_impossible_sizes(change, message):
    model, _ = nbits_model(4, 32, "none")
    for attribute in model.graph.node[1].attribute:
        if attribute.name in change:
            attribute.i = change[attribute.name]
    with pytest.raises(kvik.KvikError, match=message):
        load(model)


def test_matmul_nbits_with_inputs_that_do_not_fit():
    def refused(change, message):
        model, _ = nbits_model(4, 32, "packed")
        change(model)
        with pytest.raises(kvik.KvikError, match=message):
            load(model)

    def replace(index: int, array: np.ndarray):
        def change(model: onnx.ModelProto) -> None:
            name = model.graph.initializer[index].name
            model.graph.initializer[index].CopyFrom(initializer(name, array))

        return change

    blocks = K // 32
    refused(replace(1, np.zeros((N, blocks, 15), np.uint8)), "B has shape")
    refused(replace(1, np.zeros((N, blocks, 16), np.int8)), "B is int8; expected uint8")
    refused(replace(2, np.zeros((N, blocks + 1), np.float32)), "scales has shape")
    refused(replace(2, np.zeros((N, blocks), np.int32)), "scales is int32")
    refused(replace(3, np.zeros((N, blocks), np.uint8)), "zero_points has shape")
    refused(replace(3, np.zeros((N, blocks), np.float16)), "zero_points is float16")

    def reorder(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(initializer("order", np.arange(K, dtype=np.int32)))
        model.graph.node[1].input.append("order")

    def computed(model: onnx.ModelProto) -> None:
        model.graph.node[1].input[2] = "ids"

    def cut(model: onnx.ModelProto) -> None:
        model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:-1]

    refused(cut, "raw_data holds")
    refused(reorder, "g_idx")
    refused(computed, "scales is no constant")


@pytest.mark.parametrize(
    ("shape", "attributes", "message"),
    [
        ((N + 1,), {"axis": 1}, "the scale has shape"),
        ((N,), {"axis": 0}, "the scale has shape"),
        ((3, N), {"axis": 0, "block_size": 16}, "the scale has shape"),
        ((3, N), {"axis": 0, "block_size": 2**63 - 1}, "the scale has shape"),
        ((3, N), {"axis": 0, "block_size": -32}, "-32"),
        ((3, N), {"axis": 2, "block_size": 32}, "axis"),
        ((3, N), {"axis": -3, "block_size": 32}, "axis"),
        ((3, N), {"axis": 0}, "the scale has shape"),
        ((), {"axis": 0, "block_size": 32}, "the scale has shape"),
    ],
)
def test_scales_that_do_not_fit(shape, attributes, message):
    tensors = [
        initializer("w", np.zeros((K, N), np.int8)),
        initializer("scale", np.ones(shape, np.float32)),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["floats"], **attributes),
        helper.make_node("MatMul", ["x", "floats"], ["logits"]),
    ]
    with pytest.raises(kvik.KvikError, match=message):
        logits_of(load(language_model(nodes, tensors)), np.arange(3))


@pytest.mark.parametrize("zero", [np.zeros((3, N - 1)), np.zeros((4, N))])
def test_zero_points_that_do_not_fit(zero):
    tensors = [
        initializer("w", np.zeros((K, N), ml_dtypes.int4)),
        initializer("scale", np.ones((3, N), np.float32)),
        initializer("zero", zero.astype(ml_dtypes.int4)),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["floats"], axis=0,
                         block_size=32),
        helper.make_node("MatMul", ["x", "floats"], ["logits"]),
    ]  # fmt: skip
    with pytest.raises(kvik.KvikError, match="zero point"):
        logits_of(load(language_model(nodes, tensors)), np.arange(3))


def test_an_odd_number_of_4_bit_weights(tmp_path: Path):
    """81 columns of 65 rows: rows begin in the middle of bytes, and the last byte is half used."""
    generator = np.random.default_rng(2)
    rows, columns = 65, 81
    for transposed in (False, True):
        shape = (columns, rows) if transposed else (rows, columns)
        q = generator.integers(-8, 8, shape)
        axis = int(transposed)
        steps = tuple(3 if index == axis else size for index, size in enumerate(shape))
        scale = generator.uniform(0.5, 1, steps).astype(np.float32)
        x = generator.integers(-127, 128, (4, rows)).astype(np.float32)
        x[:, 0] = 127  # rows that int8 holds exactly
        node = [helper.make_node("DequantizeLinear", ["w", "scale"], ["floats"], axis=axis,
                                 block_size=32)]  # fmt: skip
        weight = "floats"
        if transposed:
            node.append(helper.make_node("Transpose", ["floats"], ["turned"]))
            weight = "turned"
        node.append(helper.make_node("MatMul", ["x", weight], ["y"]))
        graph = helper.make_graph(
            node, "odd",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", rows])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", columns])],
            [initializer("w", q.astype(ml_dtypes.int4)), initializer("scale", scale)],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        path = tmp_path / "odd.onnx"
        path.write_bytes(model.SerializeToString())
        w = q * expand(scale, shape, axis, 32).astype(np.float16).astype(np.float64)
        expected = x.astype(np.float64) @ (w.T if transposed else w)
        (found,) = kvik.InferenceSession(path).run(None, {"x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-2)
