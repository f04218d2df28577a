"""kvik quantize: what the file holds, what it says, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import kvik
from kvik_export.errors import ExportError
from kvik_export.exporter import export_module
from kvik_export.quantize import quantize_model
from kvik_train.models.gpt import GPT, GPTConfig

VOCAB, WIDTH = 131, 72


def export_gpt(path: Path, *, tie: bool = True, opset: int = 23) -> Path:
    torch.manual_seed(4)
    config = GPTConfig(
        vocab_size=VOCAB, context_length=48, n_layer=1, n_head=4, n_embd=WIDTH, tie_weights=tie
    )
    export_module(GPT(config), path, vocab_size=VOCAB, context_length=48, opset=opset)
    return path


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_gpt(tmp_path_factory.mktemp("gpt") / "gpt.onnx")


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvik.cli", "quantize", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def initializers(path: Path) -> dict[str, TensorProto]:
    return {item.name: item for item in onnx.load(path).graph.initializer}


def of_type(path: Path, data_type: int) -> list[TensorProto]:
    return [item for item in initializers(path).values() if item.data_type == data_type]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_file(gpt: Path, tmp_path: Path, weights: str) -> None:
    path = tmp_path / "small.onnx"
    result = quantize_model(gpt, path, weights=weights)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    # qkv, projection, two of the MLP, the table: stored once by int8. By int4 its rows have 8 bits,
    # and the vocabulary projection has 4.
    assert len(nodes) == len(result.matrices) == (5 if weights == "int8" else 6)
    (table,) = [item for item in result.matrices if item.use != "linear layer"]
    use = "embedding = projection" if weights == "int8" else "embedding"
    assert (table.use, table.weights, table.shape) == (use, "int8", (VOCAB, WIDTH))
    (stored,) = (item for item in of_type(path, TensorProto.INT8)
                 if tuple(item.dims) == table.shape)  # fmt: skip
    q = numpy_helper.to_array(stored).astype(np.float64)
    scale = numpy_helper.to_array(initializers(path)[stored.name.replace("int8", "scale")])
    floats = numpy_helper.to_array(initializers(gpt)[stored.name.removesuffix(".int8")])
    assert np.array_equal(scale, np.abs(floats).max(axis=1) / np.float32(127))
    assert np.abs(q * scale[:, None] - floats).max() <= scale.max() * 0.5001
    assert len(of_type(path, TensorProto.INT8)) == (5 if weights == "int8" else 1)
    assert len(of_type(path, TensorProto.INT4)) == (0 if weights == "int8" else 5)
    # Its size is what the table says, and a little for the graph.
    floats_left = sum(item.bytes for item in result.kept)
    integers = sum(item.bytes_after for item in result.matrices)
    assert result.bytes_after == path.stat().st_size
    assert integers + floats_left <= result.bytes_after <= integers + floats_left + 20_000
    assert result.bytes_before == gpt.stat().st_size
    assert {item.reason for item in result.kept} <= {"not a linear layer", "read by Gather"}


def test_metadata(gpt: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    quantize_model(gpt, path, weights="int8")
    before = {item.key: item.value for item in onnx.load(gpt).metadata_props}
    after = {item.key: item.value for item in onnx.load(path).metadata_props}
    provenance = json.loads(after.pop("kvik.provenance"))
    assert provenance.pop("quantized") == {"weights": "int8", "kvik": kvik.__version__}
    assert provenance == json.loads(before.pop("kvik.provenance"))
    assert after == before
    # Equal inputs give equal files.
    again = tmp_path / "again.onnx"
    quantize_model(gpt, again, weights="int8", threads=1)
    assert again.read_bytes() == path.read_bytes()


def test_untied_tables_have_8_bits(tmp_path: Path) -> None:
    source = export_gpt(tmp_path / "untied.onnx", tie=False)
    path = tmp_path / "small.onnx"
    result = quantize_model(source, path, weights="int4")
    assert [item.weights for item in result.matrices if item.use == "embedding"] == ["int8"]
    assert [item.weights for item in result.matrices].count("int4") == 5
    ids = np.arange(30)
    expected = kvik.load(source, weights="int4").logits(ids)
    assert np.array_equal(kvik.load(path).logits(ids), expected)
    # Rounding rows as they are looked up gives what the file holds.
    table = next(item for item in of_type(path, TensorProto.INT8))
    floats = numpy_helper.to_array(initializers(source)[table.name.removesuffix(".int8")])
    assert np.abs(numpy_helper.to_array(table)).max() == 127
    assert np.abs(floats).max(axis=1).min() > 0


def test_opset(tmp_path: Path) -> None:
    source = export_gpt(tmp_path / "old.onnx", opset=18)
    path = tmp_path / "small.onnx"
    quantize_model(source, path, weights="int8")
    assert onnx.load(path).opset_import[0].version == 18
    quantize_model(source, path, weights="int4")
    model = onnx.load(path)
    assert (model.opset_import[0].version, model.ir_version >= 10) == (21, True)
    reduction = plain_model("ReduceMean", opset=17)
    onnx.save(reduction, source)
    with pytest.raises(ExportError, match=r"opset 17 .* needs 21, by which ReduceMean changed"):
        quantize_model(source, path, weights="int4")


def plain_model(last: str = "Identity", opset: int = 21, **weights: np.ndarray) -> onnx.ModelProto:
    """ids -> embedding -> x W -> `last`; W [64, 64] under the name w."""
    generator = np.random.default_rng(0)
    tensors = {
        "embedding": generator.standard_normal((80, 64)).astype(np.float32),
        "w": generator.standard_normal((64, 64)).astype(np.float32),
    } | weights
    attributes = {"axes": [3]} if last == "ReduceMean" else {}
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Unsqueeze", ["y", "last"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["logits"], keepdims=0, **attributes)
        if attributes
        else helper.make_node("Squeeze", ["wide", "last"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "plain",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 64])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()]
        + [numpy_helper.from_array(np.array([3]), "last")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_a_file_that_kvik_did_not_write(tmp_path: Path) -> None:
    """Weights as Constant nodes and inside functions; no metadata."""
    source, path = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    model = plain_model()
    weight = model.graph.initializer.pop(1)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    model.functions.append(
        helper.make_function("here", "Product", ["a", "b"], ["c"], body,
                             [helper.make_opsetid("", 21)])
    )  # fmt: skip
    call = next(node for node in model.graph.node if node.op_type == "MatMul")
    call.op_type, call.domain = "Product", "here"
    model.opset_import.append(helper.make_opsetid("here", 1))
    onnx.save(model, source)
    result = quantize_model(source, path, weights="int4")
    assert sorted(item.weights for item in result.matrices) == ["int4", "int8"]
    ids = np.arange(9)
    expected = kvik.load(source, weights="int4").logits(ids)
    assert np.array_equal(kvik.load(path).logits(ids), expected)
    assert [item.key for item in onnx.load(path).metadata_props] == ["kvik.provenance"]


def test_external_data(gpt: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    result = quantize_model(gpt, path, weights="int4", external_data=True)
    assert result.external_data == tmp_path / "small.onnx.data"
    assert {item.name for item in tmp_path.iterdir()} == {"small.onnx", "small.onnx.data"}
    ids = np.arange(20)
    expected = kvik.load(gpt, weights="int4").logits(ids)
    assert np.array_equal(kvik.load(path).logits(ids), expected)
    # A model with its weights beside it is a source too, and inline replaces what was there.
    beside = tmp_path / "beside.onnx"
    onnx.save(onnx.load(gpt), beside, save_as_external_data=True, location="beside.data",
              size_threshold=0)  # fmt: skip
    result = quantize_model(beside, path, weights="int4")
    assert result.external_data is None
    assert not (tmp_path / "small.onnx.data").exists()
    assert result.bytes_before > 100_000
    assert np.array_equal(kvik.load(path).logits(ids), expected)


def test_refusals(gpt: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"

    def refused(source: Path, message: str, weights: str = "int8", output: Path = path) -> None:
        before = sorted(item.name for item in tmp_path.iterdir())
        with pytest.raises((ExportError, kvik.KvikError), match=message):
            quantize_model(source, output, weights=weights)
        assert sorted(item.name for item in tmp_path.iterdir()) == before, "something was left"

    refused(gpt, "expected 'int8' or 'int4'", weights="bf16")
    refused(gpt, "is the input", output=gpt)
    refused(gpt, "is a folder", output=tmp_path)
    refused(gpt, "there is no folder", output=tmp_path / "none" / "small.onnx")
    refused(tmp_path / "missing.onnx", "missing.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    refused(text, "text.onnx")
    small = tmp_path / "tiny.onnx"
    onnx.save(plain_model(embedding=np.ones((9, 16), np.float32), w=np.ones((16, 9), np.float32)),
              small)  # fmt: skip
    refused(small, "nothing to quantise")
    infinite = np.ones((64, 64), np.float32)
    infinite[3, 3] = np.inf
    onnx.save(plain_model(w=infinite), small)
    refused(small, "'w' has NaN or infinities")
    quantize_model(gpt, path, weights="int8")
    refused(path, "is quantised already", weights="int4", output=tmp_path / "twice.onnx")


def test_a_matrix_with_another_use(tmp_path: Path) -> None:
    """Positions in the table of the tokens need its floats."""
    source = tmp_path / "two.onnx"
    model = plain_model()
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["squares"]),
        helper.make_node("ReduceSum", ["squares"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["y", "sum"], ["scaled"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(2, node)
    model.graph.node[-2].input[0] = "scaled"
    onnx.save(model, source)
    path = tmp_path / "small.onnx"
    try:
        quantize_model(source, path, weights="int8")
    except ExportError as error:
        assert "also read by" in str(error)  # noqa: PT017
    else:  # folded when it is loaded: then only the layer is left
        ids = np.arange(9)
        expected = kvik.load(source, weights="int8").logits(ids)
        assert np.allclose(kvik.load(path).logits(ids), expected, rtol=1e-2)


def test_command(gpt: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    done = run_cli(gpt, "--weights", "int4", "-o", path)
    assert done.returncode == 0, done.stderr
    for text in ("embedding", "131 x 72", "int8", "int4", "not a linear layer", "6 matrices"):
        assert text in done.stdout
    assert kvik.load(path).info.provenance["provenance"].count("int4") == 1
    done = run_cli(gpt, "--weights", "int3", "-o", path)
    assert done.returncode == 2
    assert done.stderr == "kvik: error: --weights is 'int3'; expected int8 or int4\n"
    assert run_cli(gpt, "-o", path).returncode == 2
    done = run_cli(path, "--weights", "int8", "-o", path)
    assert "is the input: write to another file" in done.stderr
    done = subprocess.run([sys.executable, "-m", "kvik.cli", "verify", path], capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 2
    assert "has integer weights" in done.stderr


def test_without_onnx(gpt: Path, tmp_path: Path) -> None:
    """The message names what to install."""
    (tmp_path / "onnx.py").write_text("raise ModuleNotFoundError('gone', name='onnx')\n")
    (tmp_path / "onnx_ir.py").write_text("raise ModuleNotFoundError('gone', name='onnx_ir')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from kvik.cli import main; "
        f"main(['quantize', {str(gpt)!r}, '-w', 'int8', '-o', {str(tmp_path / 'x.onnx')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "kvik quantize needs onnx" in done.stderr
    assert "pip install 'kvik[export]'" in done.stderr
