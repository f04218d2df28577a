"""What an exported file holds, and what is left when an export fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from kvik_export import ExportError
from kvik_export.exporter import export_checkpoint, export_module
from kvik_train import load_checkpoint

ROOT = Path(__file__).parents[2]


class Bigram(nn.Module):
    """The smallest forward from ids to logits."""

    def __init__(self, vocab: int = 11) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, vocab)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


def metadata(path: Path) -> dict[str, str]:
    model = onnx.load(path, load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def test_metadata_is_all_that_generation_needs(exported, run_folder):
    found = metadata(exported)
    assert found["kvik.format"] == "1"
    assert found["kvik.task"] == "generate"
    assert found["kvik.family"] == "gpt"
    assert found["kvik.context_length"] == "48"
    assert found["kvik.tokenizer"] == (run_folder / "tokenizer.json").read_text()
    assert json.loads(found["kvik.special_tokens"]) == {"<|endoftext|>": 0}
    assert json.loads(found["kvik.eos_token_ids"]) == [0]
    assert set(json.loads(found["kvik.generation"])) == {"temperature", "top_k"}
    provenance = json.loads(found["kvik.provenance"])
    assert provenance["step"] == 7
    assert provenance["preset"] == "char-tiny"
    assert provenance["torch"] == torch.__version__


def test_signature_and_numbers(exported, run_folder):
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (ids,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (ids.name, ids.type, ids.shape) == ("ids", "tensor(int64)", ["batch", "sequence"])
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    assert logits.shape[:2] == ["batch", "sequence"]
    model = load_checkpoint(run_folder)[0]
    for shape in [(1, 1), (3, 5), (2, 48)]:
        batch = np.arange(np.prod(shape)).reshape(shape) % logits.shape[2]
        with torch.inference_mode():
            expected = model(torch.tensor(batch)).numpy()
        np.testing.assert_allclose(session.run(None, {"ids": batch})[0], expected, atol=1e-5)


def test_equal_inputs_give_equal_files(exported, run_folder, tmp_path):
    export_checkpoint(run_folder, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_nothing_of_this_machine_is_in_the_file(exported):
    data = exported.read_bytes()
    for trace in (str(ROOT), str(Path.home()), "site-packages", "stack_trace"):
        assert trace.encode() not in data, trace


def test_tied_weights_are_stored_once(exported):
    graph = onnx.load(exported).graph
    sizes = [tuple(value.dims) for value in graph.initializer]
    vocab = graph.output[0].type.tensor_type.shape.dim[2].dim_value
    assert sizes.count((vocab, 16)) == 1
    assert (16, vocab) not in sizes


def test_external_data(run_folder, tmp_path, exported):
    path = tmp_path / "model.onnx"
    result = export_checkpoint(run_folder, path, external_data=True)
    assert result.external_data == tmp_path / "model.onnx.data"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    ids = {"ids": np.arange(6).reshape(1, 6)}
    found, expected = (
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, ids)[0]
        for file in (path, exported)
    )
    np.testing.assert_array_equal(found, expected)
    assert metadata(path) == metadata(exported)


def test_an_inline_export_takes_the_weights_of_the_old_one_away(tmp_path):
    path, data = tmp_path / "b.onnx", tmp_path / "b.onnx.data"
    options = {"vocab_size": 11, "context_length": 8}
    export_module(Bigram(), path, external_data=True, **options)
    assert data.is_file()
    export_module(Bigram(), path, external_data=False, **options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.onnx"]
    data.write_bytes(b"no weights of this model")
    export_module(Bigram(), path, external_data=False, **options)
    assert data.read_bytes() == b"no weights of this model"


def test_a_folder_that_takes_no_files():
    with pytest.raises(ExportError, match=r"cannot write /proc/b.onnx: "):
        export_module(Bigram(), "/proc/b.onnx", vocab_size=11, context_length=8)


def test_prints_nothing_and_leaves_the_mode(tmp_path, capfd):
    module = Bigram().train()
    result = export_module(module, tmp_path / "b.onnx", vocab_size=11, context_length=8)
    assert module.training
    assert capfd.readouterr() == ("", "")
    assert result.parameters == 121
    assert "121 parameters" in result.summary()


class Broken(nn.Module):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such layer")


class Half(Bigram):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids).half()


@pytest.mark.parametrize(("module", "message"), [(Broken(), "no such layer"), (Half(), "float32")])
def test_a_failed_export_leaves_what_was_there(tmp_path, module, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the one before")
    with pytest.raises(ExportError, match=message) as caught:
        export_module(module, path, vocab_size=11, context_length=8)
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_bytes() == b"the one before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset is 17; it must be one of 18"),
        ({"context_length": 1}, "context_length is 1"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"path": "nowhere/model.onnx"}, "no folder"),
        ({"path": "."}, "is a folder"),
    ],
)
def test_impossible_options(tmp_path, options, message):
    settings = {"path": "model.onnx", "vocab_size": 11, "context_length": 8, **options}
    path = tmp_path / settings.pop("path")
    with pytest.raises(ExportError, match=message):
        export_module(Bigram(), path, **settings)


def test_a_tokenizer_with_more_tokens_than_the_model(run_folder, tmp_path):
    with pytest.raises(ExportError, match="tokens but the model has 11"):
        export_module(
            Bigram(), tmp_path / "b.onnx", vocab_size=11, context_length=8,
            tokenizer=run_folder / "tokenizer.json",
        )  # fmt: skip
