"""LSTM, GRU and RNN: torch = onnxruntime = kvik, in every direction and with every option."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import kvik
from parity.exported import assert_three_agree, export, run_onnxruntime

KINDS = ("LSTM", "GRU", "RNN")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Stack(nn.Module):
    """Layers on [steps, batch, features], or [batch, steps, features]; states given or not."""

    def __init__(self, kind: str, layers: int = 2, batch_first: bool = False, **options) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rnn = getattr(nn, kind)(12, 20, layers, batch_first=batch_first, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, state = self.rnn(x)
        return (y, *state) if isinstance(state, tuple) else (y, state)


class Packed(nn.Module):
    """Sequences of different lengths, which an exporter hands to sequence_lens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.rnn = getattr(nn, kind)(6, 10, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=True)
        return pad_packed_sequence(self.rnn(packed)[0])[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_stacks(kind, bidirectional, batch_first, tmp_path):
    module = Stack(kind, batch_first=batch_first, bidirectional=bidirectional).eval()
    path = export(module, [torch.randn(5, 3, 12)], tmp_path / "m.onnx", {0: "a", 1: "b"})
    assert any(node.op_type == kind for node in onnx.load(path).graph.node)
    for shape in ((5, 3, 12), (1, 1, 12), (9, 4, 12)):
        assert_three_agree(module, path, [torch.randn(shape)])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_stacks_of_the_new_exporter(kind, tmp_path):
    module = Stack(kind, bidirectional=True).eval()
    path = export(module, [torch.randn(5, 3, 12)], tmp_path / "m.onnx", {0: "steps"}, dynamo=True)
    assert any(node.op_type == kind for node in onnx.load(path).graph.node)
    assert_three_agree(module, path, [torch.randn(5, 3, 12)])  # the exporter fixes the length


def test_relu(tmp_path):
    module = Stack("RNN", nonlinearity="relu").eval()
    path = export(module, [torch.randn(5, 3, 12)], tmp_path / "m.onnx", {0: "steps"})
    assert_three_agree(module, path, [torch.randn(7, 3, 12)])


@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind, tmp_path):
    module = Packed(kind).eval()
    inputs = [torch.randn(6, 3, 6), torch.tensor([6, 4, 1])]
    names, axes = ["x0", "x1"], {"x0": {0: "steps", 1: "batch"}, "x1": {0: "batch"}}
    torch.onnx.export(
        module, tuple(inputs), str(tmp_path / "m.onnx"), input_names=names, dynamo=False,
        opset_version=17, dynamic_axes=axes,
    )  # fmt: skip
    assert_three_agree(module, tmp_path / "m.onnx", inputs)
    other = [torch.randn(4, 5, 6), torch.tensor([4, 4, 3, 2, 2])]
    assert_three_agree(module, tmp_path / "m.onnx", other)


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embedding = nn.Embedding(50, 64)
        self.rnn = nn.LSTM(64, 96, 2, batch_first=True)
        self.head = nn.Linear(96, 50)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(ids))[0])


def test_a_language_model_in_low_precision(tmp_path):
    """`weights=` reaches recurrent layers: near the exact logits, whatever the threads."""
    module = LanguageModel().eval()
    ids = torch.randint(50, (1, 12))
    path = tmp_path / "m.onnx"
    torch.onnx.export(
        module, (ids,), str(path), input_names=["ids"], output_names=["logits"], dynamo=False,
        opset_version=17, dynamic_axes={"ids": {0: "batch", 1: "sequence"}},
    )  # fmt: skip
    with torch.inference_mode():
        exact = module(ids)[0].numpy()
    bounds = {"f32": 1e-5, "bf16": 0.02, "int8": 0.05, "int4": 0.5}
    for weights, bound in bounds.items():
        one, two = (
            kvik.load(path, weights=weights, threads=threads).logits(ids[0].tolist())
            for threads in (1, 2)
        )
        np.testing.assert_array_equal(one, two)
        error = np.abs(one - exact).max()
        assert error < bound
        assert weights == "f32" or error > 1e-5, "the weights were not rounded"


def one_node(
    kind: str, tmp_path: Path, *, directions: int = 1, options: str = "", **attributes
) -> tuple[Path, dict[str, np.ndarray]]:
    """A model of one node with the optional inputs named in `options`: b, s, h, c, p."""
    steps, batch, width, hidden = 6, 3, 5, 7
    rng = np.random.default_rng(3)

    def array(*shape: int, spread: float = 1.0) -> np.ndarray:
        return (spread * rng.standard_normal(shape)).astype(np.float32)

    rows = GATES[kind] * hidden
    x = array(steps, batch, width)
    everything = {
        "x": x,
        "w": array(directions, rows, width),
        "r": array(directions, rows, hidden, spread=0.5),
        "b": array(directions, 2 * rows),
        "s": np.array([3, 6, 2], np.int32),
        "h": array(directions, batch, hidden),
        "c": array(directions, batch, hidden),
        "p": array(directions, 3 * hidden),
    }
    order = "xwrbsh" + ("cp" if kind == "LSTM" else "")
    feeds = {name: everything[name] for name in order if name in "xwr" + options}
    outputs = ["y", "yh", "yc"][: 3 if kind == "LSTM" else 2]
    directions_name = {1: "forward", 2: "bidirectional"}[directions]
    attributes = {"direction": directions_name, "hidden_size": hidden, **attributes}
    node = helper.make_node(
        kind, [name if name in feeds else "" for name in order], outputs, **attributes
    )
    graph = helper.make_graph(
        [node], "g",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in feeds.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    path = tmp_path / "node.onnx"
    path.write_bytes(model.SerializeToString())
    return path, feeds


def assert_as_onnxruntime(path: Path, feeds: dict[str, np.ndarray]) -> None:
    found = kvik.InferenceSession(path).run(None, feeds)
    for mine, theirs in zip(found, run_onnxruntime(path, feeds), strict=True):
        # States that no function bounds grow, and errors with them.
        bound = 5e-5 * max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", ["", "b", "h", "bs", "bshcp", "p", "sc"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_optional_inputs(kind, options, direction, tmp_path):
    directions = 2 if direction == "bidirectional" else 1
    assert_as_onnxruntime(
        *one_node(kind, tmp_path, directions=directions, options=options, direction=direction)
    )


ACTIVATIONS = {
    "Affine": (1.3, 0.1),
    "Elu": (0.7, None),
    "HardSigmoid": (0.3, 0.4),
    "LeakyRelu": (0.2, None),
    "Relu": (None, None),
    "ScaledTanh": (0.9, 1.2),
    "Sigmoid": (None, None),
    "Softplus": (None, None),
    "Softsign": (None, None),
    "Tanh": (None, None),
    "ThresholdedRelu": (0.3, None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(kind, name, tmp_path):
    """The function at every place in turn, the others alternating, in both directions."""
    count = {"LSTM": 3, "GRU": 2, "RNN": 1}[kind]
    for place in range(count):
        names = ["Sigmoid", "Tanh", "Softsign"][:count] * 2
        names[place] = names[count + place] = name
        alphas = [ACTIVATIONS[one][0] for one in names if ACTIVATIONS[one][0] is not None]
        betas = [ACTIVATIONS[one][1] for one in names if ACTIVATIONS[one][1] is not None]
        attributes = {"activations": names}
        attributes |= {"activation_alpha": alphas} if alphas else {}
        attributes |= {"activation_beta": betas} if betas else {}
        assert_as_onnxruntime(
            *one_node(kind, tmp_path, directions=2, options="bhc", clip=2.0, **attributes)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_clip(kind, tmp_path):
    assert_as_onnxruntime(*one_node(kind, tmp_path, options="bhcp", clip=0.4))


@pytest.mark.parametrize("options", ["b", "bsh"])
def test_linear_before_reset(options, tmp_path):
    for value in (0, 1):
        assert_as_onnxruntime(
            *one_node("GRU", tmp_path, options=options, linear_before_reset=value)
        )


def test_input_forget(tmp_path):
    assert_as_onnxruntime(*one_node("LSTM", tmp_path, options="bhcp", input_forget=1))


@pytest.mark.parametrize("kind", KINDS)
def test_16_bits(kind, tmp_path):
    """float16 is computed in float32 and rounded once, at the end."""
    path, feeds = one_node(kind, tmp_path, options="bshcp")
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    halves = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in feeds.items()
    }
    widened = {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in halves.items()
    }
    found = kvik.InferenceSession(model.SerializeToString()).run(None, halves)
    for mine, exact in zip(found, kvik.InferenceSession(path).run(None, widened), strict=True):
        assert mine.dtype == np.float16
        np.testing.assert_array_equal(mine, exact.astype(np.float16))
