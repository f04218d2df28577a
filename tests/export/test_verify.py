"""kvik verify agrees where engines agree, and finds the node where they do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kvik_export import ExportError, bisect, verify_model
from kvik_export.bisect import first_divergence
from kvik_export.exporter import export_module
from kvik_export.verify import longest_length
from kvik_train.models.gpt import GPT, GPTConfig

FEEDS = {"ids": np.arange(9).reshape(1, 9)}


def test_everything_agrees(exported, run_folder):
    steps: list[str] = []
    result = verify_model(exported, checkpoint=run_folder, on_step=steps.append)
    assert result.ok, result.checks
    assert result.incremental
    assert result.divergence is None
    assert {check.prompts for check in result.checks} == {"random", "text"}
    names = {check.what for check in result.checks}
    assert len(names) == 6, names
    assert any(name.startswith("torch") for name in names)
    assert 0 < result.largest_error < 1e-5, "nothing was compared, or it was compared with itself"
    greedy = [check for check in result.checks if "greedy" in check.what]
    assert all(int(check.compared.split()[0]) >= 32 for check in greedy)
    assert all(check.note == "context of 48" for check in greedy)
    assert steps


def test_all_steps_are_compared_where_the_context_has_room(tmp_path):
    path = tmp_path / "gpt.onnx"
    config = GPTConfig(vocab_size=31, context_length=320, n_layer=1, n_head=2, n_embd=16)
    torch.manual_seed(3)
    export_module(GPT(config), path, vocab_size=31, context_length=320)
    result = verify_model(path, length=9)
    assert result.ok, result.checks
    greedy = [check for check in result.checks if "greedy" in check.what]
    assert [check.compared for check in greedy] == ["256 tokens"]
    assert "context" not in greedy[0].note


class Summed(nn.Module):
    """Adds the sum of the tokens so far, of which there is no proof; knows 24 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(31, 16), nn.Embedding(24, 16)
        self.head = nn.Linear(16, 31)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(x + x.cumsum(1))


def test_a_recomputed_model_without_a_known_context(tmp_path):
    """The end of its table of positions is found, not run into."""
    path = tmp_path / "summed.onnx"
    torch.manual_seed(3)
    export_module(Summed(), path, vocab_size=31, context_length=24)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    result = verify_model(path)
    assert result.ok, result.checks
    assert not result.incremental
    greedy = [check for check in result.checks if "greedy" in check.what]
    assert greedy[0].compared == "18 tokens"
    assert greedy[0].note == "to 24 tokens, the most that onnxruntime runs"


def test_the_longest_length_that_an_engine_runs():
    def engine(ids):
        if len(ids) > 24:
            raise RuntimeError("index out of bounds")

    assert [longest_length(engine, most) for most in (7, 24, 25, 512)] == [7, 24, 24, 24]

    def broken(ids):
        raise RuntimeError("no kernel")

    with pytest.raises(ExportError, match="cannot run one token: RuntimeError: no kernel"):
        longest_length(broken, 8)


def test_weights_of_another_run_are_found_out(exported, other_run_folder):
    result = verify_model(exported, checkpoint=other_run_folder, greedy_steps=4)
    wrong = {check.what for check in result.checks if not check.ok}
    assert wrong == {"torch"}
    assert result.divergence is None, "kvik and onnxruntime agree on every node"
    assert result.explanation


def perturb(monkeypatch, node_name: str, path, *, only_fused: bool) -> None:
    """Make kvik wrong at a node and at all that come after it."""
    graph = onnx.load(path).graph
    order = [name for node in graph.node for name in node.output]
    wrong = [name for node in graph.node if node.name == node_name for name in node.output]
    first = order.index(wrong[0])
    honest = bisect._kvik_values

    def values(path, names, outputs, feeds, *, optimize):
        found = honest(path, names, outputs, feeds, optimize=optimize)
        if only_fused and not optimize:
            return found
        return {
            name: value + 1 if order.index(name) >= first and value.dtype == np.float32 else value
            for name, value in found.items()
        }

    monkeypatch.setattr(bisect, "_kvik_values", values)


@pytest.mark.parametrize("only_fused", [False, True])
def test_the_first_wrong_node_is_named(exported, monkeypatch, only_fused):
    graph = onnx.load(exported).graph
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    culprit = norms[2]
    perturb(monkeypatch, culprit.name, exported, only_fused=only_fused)
    found = first_divergence(exported, FEEDS)
    assert found is not None
    assert (found.node, found.op, found.fused) == (culprit.name, culprit.op_type, only_fused)
    assert culprit.name in found.describe()


def test_no_divergence(exported):
    assert first_divergence(exported, FEEDS) is None


def test_not_a_plain_forward(tmp_path):
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    import kvik

    with pytest.raises((ExportError, kvik.KvikError)):
        verify_model(path)


def run_verify(capsys, *arguments):
    """Exit status, standard output and standard error of `kvik verify`."""
    from kvik.cli import main

    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["verify", *map(str, arguments)])
    return caught.value.code, *capsys.readouterr()


def test_command_status(exported, run_folder, other_run_folder, tmp_path, capsys):
    options = ("--steps", 8, "--length", 9)
    status, out, _ = run_verify(capsys, exported, "--checkpoint", run_folder, *options)
    assert status == 0, out
    assert "largest error" in out
    status, out, _ = run_verify(capsys, exported, "--checkpoint", other_run_folder, *options)
    assert status == 1
    assert "different" in out
    status, out, error = run_verify(capsys, tmp_path / "none.onnx")
    assert (status, out) == (2, "")
    assert error.startswith("kvik: error: ")
    assert "none.onnx" in error
    assert error.count("\n") == 1
