"""Every family and task: torch = onnxruntime on its exported file, in new sizes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest
from tests.export.families import (
    CASES,
    CONTEXT,
    LABELS,
    make_run,
)

from kvik_export import ExportError
from kvik_export.cli import report
from kvik_export.engines import onnxruntime_session
from kvik_export.exporter import export_checkpoint
from kvik_export.verify_plain import (
    KVIK_TARGETS,
    KVIK_TEXTS,
    PlainEngine,
    is_generator,
    verify_plain,
)


@pytest.mark.parametrize(("family", "task", "use", "kvik_task"), CASES)
def test_torch_equals_onnxruntime(files, family, task, use, kvik_task, capsys):
    path = files[family, task, use]
    result = verify_plain(path, checkpoint=path.parent / "run", length=24)
    assert result.ok, result.checks
    compared = [check for check in result.checks if check.what == "torch"]
    assert 0 < compared[0].error < 1e-5
    targets = [check for check in result.checks if check.what == KVIK_TARGETS]
    assert bool(targets) == (kvik_task == "translate")
    assert not any(check.skipped for check in result.checks), result.checks  # kvik among them
    padded = [check for check in result.checks if "padding" in check.what]
    texts = [check for check in result.checks if check.what == KVIK_TEXTS]
    assert bool(texts) == (kvik_task in ("fill_mask", "classify", "tag", "answer", "embed"))
    assert all(not check.skipped for check in texts)
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
