"""`kvik quantize` on LSTM, GRU and RNN: bitwise the numbers of quantising at load, in every
direction, whole and token by token, and onnxruntime runs the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import kvik
from kvik import _core
from kvik_export.quantize import quantize_model

KINDS = {"LSTM": 4, "GRU": 3, "RNN": 1}
WEIGHTS = ("int8", "int4")
VOCAB, HIDDEN = 131, 97  # hidden units: odd, so that rows of 4 bits begin within a byte


class LanguageModel(nn.Module):
    def __init__(self, kind: str, inputs: int, bidirectional: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embedding = nn.Embedding(VOCAB, inputs)
        self.recurrent = getattr(nn, kind)(inputs, HIDDEN, 2, batch_first=True,
                                           bidirectional=bidirectional)  # fmt: skip
        self.head = nn.Linear(HIDDEN * (1 + bidirectional), VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(ids))[0])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """The path of one, exported when it is first asked for."""
    done: dict[tuple[str, int, bool], Path] = {}

    def get(kind: str, inputs: int = 72, bidirectional: bool = False) -> Path:
        case = (kind, inputs, bidirectional)
        if case not in done:
            path = tmp_path_factory.mktemp("recurrent") / "model.onnx"
            torch.onnx.export(
                LanguageModel(*case).eval(), (torch.zeros((2, 3), dtype=torch.int64),), str(path),
                dynamo=False, input_names=["ids"], output_names=["logits"],
                dynamic_axes={"ids": {0: "batch", 1: "sequence"}},
            )  # fmt: skip
            done[case] = path
        return done[case]

    return get


def recurrent_matrices(path: Path, weights: str = "f32") -> list[_core.MatrixInfo]:
    core = kvik.load(path, weights=weights, task="generate")._core
    return [item for item in core.matrices() if item.directions]


def check_kept(source: Path, stored: Path, weights: str, layers: int = 2) -> None:
    """What is kept in which precision is what it is when the source is quantised at load."""
    expected, found = recurrent_matrices(source, weights), recurrent_matrices(stored)
    assert len(expected) == 2 * layers, "W and R of each layer"
    assert [(item.weights, item.shape, item.directions) for item in found] == [
        (item.weights, item.shape, item.directions) for item in expected
    ]
    assert [item.stored for item in found] == [item.weights == weights for item in expected]


def near(theirs: np.ndarray, ours: np.ndarray) -> bool:
    """Both round the inputs of layers, if at all, in their own way."""
    return bool(np.abs(theirs - ours).max() <= 0.05 * np.abs(theirs).max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("inputs", [72, 20])  # of 20 inputs W stays in fp32, and R does not
@pytest.mark.parametrize("kind", KINDS)
def test_language_models(kind, inputs, weights, language_model, tmp_path):
    source, path = language_model(kind, inputs), tmp_path / "small.onnx"
    result = quantize_model(source, path, weights=weights)
    assert [item.use for item in result.matrices].count("recurrent layer") == 3 + (inputs == 72)
    assert path.stat().st_size < source.stat().st_size / 2.5
    check_kept(source, path, weights)
    onnx.checker.check_model(path, full_check=True)

    at_load = kvik.load(source, weights=weights, task="generate")
    ids = np.random.default_rng(3).integers(0, VOCAB, 24)
    expected = at_load.logits(ids)
    exact = kvik.load(source, task="generate").logits(ids)
    assert not np.array_equal(expected, exact)
    for threads in (1, 3):
        for asked in ("f32", "int8", "int4"):
            stored = kvik.load(path, weights=asked, threads=threads, task="generate")
            assert stored.info.incremental, stored.explain()
            assert np.array_equal(stored.logits(ids), expected), (threads, asked)
    assert np.array_equal(stored.logits(ids, chunk=1), expected)
    assert np.array_equal(stored.logits(ids, cache=False), expected)
    prompt = ids[:5].tolist()
    assert stored.generate(prompt, max_new_tokens=20) == at_load.generate(prompt, max_new_tokens=20)

    # Every operator over the whole sequence.
    whole = _core.Model.load(path, incremental=False)
    assert np.array_equal(whole.forward([(whole.new_sequence(), ids, _core.Logits.ALL)]), expected)
    session = onnxruntime.InferenceSession(path)
    assert near(session.run(None, {"ids": ids[None]})[0][0], expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_in_both_directions(kind, weights, language_model, tmp_path):
    source, path = language_model(kind, bidirectional=True), tmp_path / "small.onnx"
    quantize_model(source, path, weights=weights)
    check_kept(source, path, weights)
    at_load, stored = _core.Model.load(source, weights=weights), _core.Model.load(path)
    assert [item.weights for item in stored.matrices() if item.directions == 2] == [weights] * 4
    ids = np.random.default_rng(4).integers(0, VOCAB, 24)
    texts = [(ids, None), (ids[:7], None)]
    expected = at_load.encode(texts)
    assert np.array_equal(stored.encode(texts), expected)
    assert not np.array_equal(_core.Model.load(source).encode(texts), expected)
    session = onnxruntime.InferenceSession(path)
    assert near(session.run(None, {"ids": ids[None]})[0][0], expected[: len(ids)])


def layer_file(path: Path, kind: str, direction: str) -> Path:
    """ids [batch, steps] -> embedding -> one layer of seeded weights, with every output."""
    directions, gates = 1 + (direction == "bidirectional"), KINDS[kind]
    random = np.random.default_rng(11)
    tensors = {
        "table": random.standard_normal((VOCAB, 40)),
        "w": 0.1 * random.standard_normal((directions, gates * 66, 40)),
        "r": 0.1 * random.standard_normal((directions, gates * 66, 66)),
        "b": 0.1 * random.standard_normal((directions, 2 * gates * 66)),
    }
    outputs = ["y", "y_h", "y_c"][: 3 if kind == "LSTM" else 2]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["texts"]),
        helper.make_node("Transpose", ["texts"], ["x"], perm=[1, 0, 2]),
        helper.make_node(kind, ["x", "w", "r", "b"], outputs, name="layer", hidden_size=66,
                         direction=direction),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "layer",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "steps"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT,
                                       ["steps"] * (name == "y") + [directions, "batch", 66])
         for name in outputs],
        [numpy_helper.from_array(value.astype(np.float32), name)
         for name, value in tensors.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
              path)  # fmt: skip
    return path


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_sessions(kind, direction, weights, tmp_path):
    source, path = layer_file(tmp_path / "a.onnx", kind, direction), tmp_path / "small.onnx"
    quantize_model(source, path, weights=weights)
    feeds = {"ids": np.random.default_rng(5).integers(0, VOCAB, (3, 9))}
    expected = kvik.InferenceSession(source, weights=weights).run(None, feeds)
    exact = kvik.InferenceSession(source).run(None, feeds)
    theirs = onnxruntime.InferenceSession(path).run(None, feeds)
    for asked in ("f32", *WEIGHTS):
        found = kvik.InferenceSession(path, weights=asked).run(None, feeds)
        for own, at_load, floats, other in zip(found, expected, exact, theirs, strict=True):
            assert np.array_equal(own, at_load)
            assert not np.array_equal(own, floats)
            assert near(other, own)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_malformed_files(weights, tmp_path):
    source, path = layer_file(tmp_path / "a.onnx", "LSTM", "bidirectional"), tmp_path / "small.onnx"
    quantize_model(source, path, weights=weights)
    good = onnx.load(path)
    kept = {item.name: numpy_helper.to_array(item) for item in good.graph.initializer}

    def changed(name: str, array: np.ndarray) -> Path:
        model = onnx.ModelProto()
        model.CopyFrom(good)
        (tensor,) = (item for item in model.graph.initializer if item.name == name)
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        onnx.save(model, path)
        return path

    expected = r"\[528\]" if weights == "int8" else r"\[528, 3\]"
    message = rf"LSTM node 'layer': the scale has shape .*; expected {expected} for weights of "
    scales = kept["r.scale"]  # of 2 directions, 4 gates and 66 units
    # Of one direction alone, one row too many, and of another rank.
    for wrong in (scales[:264], np.concatenate([scales, scales[:1]]), scales.reshape(2, 264, -1)):
        for load in (kvik.InferenceSession, kvik.load):
            with pytest.raises(kvik.KvikError, match=message):
                load(changed("r.scale", wrong))
    # Rows of the matrix that are no rows of R: it is not taken for R, and refused as ever.
    session = kvik.InferenceSession(changed("r.shape", np.array([2, 132, 132])))
    with pytest.raises(kvik.KvikError, match="LSTM node 'layer': R has shape"):
        session.run(None, {"ids": np.zeros((1, 1), np.int64)})


def test_weights_beside_computed_ones_stay_floats(tmp_path):
    """R is computed, so the layer multiplies in fp32 at load: a file must not round its W."""
    rng = np.random.default_rng(5)

    def constant(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 8, name)

    units = 64
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["x"]),
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["ids"], ["batch"], start=0, end=1),
        helper.make_node("Cast", ["batch"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["r", "factor"], ["computed"]),
        helper.make_node("RNN", ["steps", "w", "computed"], ["y"], hidden_size=units),
        helper.make_node("Squeeze", ["y", "one"], ["states"]),
        helper.make_node("Transpose", ["states"], ["rows"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["rows", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "computed",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB])],
        [constant("embedding", VOCAB, 80), constant("w", 1, units, 80),
         constant("r", 1, units, units), constant("head", units, VOCAB),
         numpy_helper.from_array(np.array([1]), "one")],
    )  # fmt: skip
    source, path = tmp_path / "model.onnx", tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), source)
    assert recurrent_matrices(source, "int8") == []
    result = quantize_model(source, path, weights="int8")
    assert "recurrent layer" not in [item.use for item in result.matrices]
    ids = rng.integers(0, VOCAB, 9)
    at_load = kvik.load(source, weights="int8", task="generate").logits(ids)
    assert np.array_equal(kvik.load(path, task="generate").logits(ids), at_load)
