"""Every family and task: torch = onnxruntime on its exported file, in new sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from kvik_export import ExportError
from kvik_export.cli import report
from kvik_export.engines import onnxruntime_session
from kvik_export.exporter import export_checkpoint
from kvik_export.verify_plain import PlainEngine, is_generator, verify_plain
from kvik_train.checkpoint import Checkpoint, Progress, save_checkpoint
from kvik_train.config import DataConfig, RunConfig, TrainConfig
from kvik_train.data.framing import DECODER, ENCODER, SOURCE, with_frame
from kvik_train.data.prepare import tokenizer_path
from kvik_train.models import build_model
from kvik_train.models.bert import BERTConfig
from kvik_train.models.cnn import CNNConfig
from kvik_train.models.gpt import GPTConfig
from kvik_train.models.rnn import RNNConfig
from kvik_train.models.seq2seq import Seq2SeqConfig
from kvik_train.models.transformer import TransformerConfig
from kvik_train.models.vit import ViTConfig
from kvik_train.tokenizer import BERT_TOKENS, END_OF_TEXT, TRANSLATION_TOKENS, train_tokenizer

CONTEXT = 20
MODELS = {
    "gpt": GPTConfig(300, CONTEXT, n_layer=1, n_head=2, n_embd=16),
    "bert": BERTConfig(60, CONTEXT, n_layer=1, n_head=2, n_embd=16, n_feed_forward=32),
    "transformer": TransformerConfig(
        300, CONTEXT, n_layer=1, n_head=2, n_embd=16, n_feed_forward=32
    ),
    "rnn": RNNConfig("rnn", 300, 9, n_layer=2, n_embd=8, n_hidden=12),
    "lstm": RNNConfig("lstm", 300, 9, n_layer=2, n_embd=8, n_hidden=12),
    "gru": RNNConfig("gru", 300, 9, n_layer=1, n_embd=8, n_hidden=12),
    "seq2seq": Seq2SeqConfig(300, CONTEXT, n_layer=2, n_embd=8, n_hidden=12),
    "vit": ViTConfig(8, 3, patch_size=4, n_layer=1, n_head=2, n_embd=16, n_feed_forward=32),
    "cnn": CNNConfig(8, kernel_size=3, padding=1, n_filter_1=3, n_filter_2=4, n_hidden_1=6,
                     n_hidden_2=5),
}  # fmt: skip
# family, task, as it is exported, kvik.task
CASES = [
    ("lstm", "lm", None, "generate"),
    ("gru", "lm", None, "generate"),
    ("rnn", "lm", None, "generate"),
    ("gpt", "classify", None, "classify"),
    ("bert", "mlm", None, "fill_mask"),
    ("bert", "classify", None, "classify"),
    ("bert", "tag", None, "tag"),
    ("bert", "answer", None, "answer"),
    ("bert", "mlm", "embed", "embed"),
    ("transformer", "translate", None, "translate"),
    ("seq2seq", "translate", None, "translate"),
    ("vit", "classify-image", None, "classify_image"),
    ("cnn", "classify-image", None, "classify_image"),
]
LABELS = ("ham", "spam", "other")


def make_run(folder: Path, family: str, task: str) -> Path:
    """A run as kvik_train leaves it, with seeded weights."""
    folder.mkdir(parents=True)
    if task != "classify-image":
        special = {"bert": BERT_TOKENS, "transformer": TRANSLATION_TOKENS,
                   "seq2seq": TRANSLATION_TOKENS}.get(family, (END_OF_TEXT,))  # fmt: skip
        kind = "wordpiece" if family == "bert" else "char"
        tokenizer = train_tokenizer(kind, ["one two three four five"] * 3, 300, special)
        frame = {"bert": ENCODER, "gpt": DECODER}.get(family, SOURCE)
        if task != "lm":
            with_frame(tokenizer, frame)
        tokenizer.save(str(tokenizer_path(folder)))
    labels = LABELS if task in ("classify", "tag", "classify-image") else ()
    torch.manual_seed(3)
    model = build_model(MODELS[family], task, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    name = "rnn" if family in ("lstm", "gru") else family
    run = RunConfig("tiny", name, MODELS[family], DataConfig(), TrainConfig(), task, labels=labels)
    save_checkpoint(
        folder, Checkpoint(run, replace(Progress(), step=3), "", model.state_dict(), {})
    )
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str | None], Path]:
    """Files by case, exported when first asked for."""

    class Exported(dict[tuple[str, str, str | None], Path]):
        def __missing__(self, case: tuple[str, str, str | None]) -> Path:
            family, task, use = case
            folder = tmp_path_factory.mktemp("run")
            path = folder / "model.onnx"
            export_checkpoint(make_run(folder / "run", family, task), path, task=use)
            self[case] = path
            return path

    return Exported()


@pytest.mark.parametrize(("family", "task", "use", "kvik_task"), CASES)
def test_torch_equals_onnxruntime(files, family, task, use, kvik_task, capsys):
    path = files[family, task, use]
    result = verify_plain(path, checkpoint=path.parent / "run", length=24)
    assert result.ok, result.checks
    compared = [check for check in result.checks if check.what == "torch"]
    assert 0 < compared[0].error < 1e-5
    padded = [check for check in result.checks if "padding" in check.what]
    assert bool(padded) == (kvik_task not in ("generate", "classify_image"))
    assert all(not check.compared.startswith("0 ") for check in padded)
    report(result)
    assert "equal" in capsys.readouterr().out

    metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert metadata["kvik.task"] == kvik_task
    assert ("kvik.labels" in metadata) == (task in ("classify", "tag", "classify-image"))
    bounded = task not in ("lm", "classify-image")
    assert metadata.get("kvik.context_length") == (str(CONTEXT) if bounded else None)
    session = onnxruntime_session(str(path))
    dynamic = [axis for item in session.get_inputs() for axis in item.shape
               if isinstance(axis, str)]  # fmt: skip
    assert set(dynamic) <= {"batch", "sequence", "source", "target"}
    assert "batch" in dynamic


@pytest.mark.parametrize("family", ["lstm", "gru", "rnn", "seq2seq"])
def test_recurrences_are_nodes_of_their_own(files, family):
    path = files[family, "translate" if family == "seq2seq" else "lm", None]
    ops = [node.op_type for node in onnx.load(path).graph.node]
    wanted = {"seq2seq": "GRU"}.get(family, family.upper())
    assert ops.count(wanted) == {"seq2seq": 4, "gru": 1}.get(family, 2)
    assert len(ops) < 60  # nothing is unrolled


@pytest.mark.parametrize("case", [("gru", "lm"), ("transformer", "translate")])
def test_the_oldest_opset(case, tmp_path):
    run = make_run(tmp_path / "run", *case)
    export_checkpoint(run, tmp_path / "old.onnx", opset=18)
    result = verify_plain(tmp_path / "old.onnx", checkpoint=run, length=24)
    assert result.ok, result.checks


def test_metadata_of_each_task(files):
    def of(*case):
        return {item.key: item.value for item in onnx.load(files[case]).metadata_props}

    mlm = of("bert", "mlm", None)
    assert (mlm["kvik.mask_token_id"], mlm["kvik.pad_token_id"]) == ("4", "0")
    assert json.loads(of("bert", "classify", None)["kvik.labels"]) == list(LABELS)
    translate = of("transformer", "translate", None)
    assert translate["kvik.start_token_id"] == "1"
    assert json.loads(translate["kvik.eos_token_ids"]) == [2]
    assert json.loads(of("vit", "classify-image", None)["kvik.image"]) == {
        "size": [8, 8], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    assert of("bert", "mlm", "embed")["kvik.pooling"] == "mean"
    assert "kvik.generation" in of("lstm", "lm", None)


def test_a_wrong_engine_is_found_and_an_unable_one_named(files):
    path = files["bert", "tag", None]

    def wrong(file: Path, threads: int | None) -> tuple[str, PlainEngine]:
        session = onnxruntime_session(str(file))

        def run(feeds):
            (logits,) = session.run(None, dict(feeds))
            logits[-1, -1, 0] += 1e-2
            return [logits]

        return "wrong", run

    def unable(file: Path, threads: int | None) -> tuple[str, PlainEngine]:
        raise RuntimeError("no such operator")

    result = verify_plain(path, engines=[wrong, unable], length=8)
    assert not result.ok
    found = {check.what: check for check in result.checks}
    assert not found["wrong"].ok
    assert found["unable"].skipped
    assert "no such operator" in found["unable"].note


def test_a_checkpoint_of_another_task_is_refused(files):
    other = files["vit", "classify-image", None].parent / "run"
    with pytest.raises(ExportError, match="do not belong together"):
        verify_plain(files["bert", "tag", None], checkpoint=other)
    assert not is_generator(files["bert", "tag", None])


def test_only_bert_embeds(tmp_path):
    run = make_run(tmp_path / "run", "cnn", "classify-image")
    with pytest.raises(ExportError, match="a cnn model gives no embeddings"):
        export_checkpoint(run, tmp_path / "x.onnx", task="embed")
    with pytest.raises(ExportError, match="task is 'tag'"):
        export_checkpoint(run, tmp_path / "x.onnx", task="tag")
