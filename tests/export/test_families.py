"""Every family and task: torch = onnxruntime on its exported file, in new sizes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest
import torch

import kvik
from kvik import _core
from kvik_export import ExportError
from kvik_export.cli import report
from kvik_export.engines import onnxruntime_session
from kvik_export.exporter import export_checkpoint
from kvik_export.quantize import quantize_model
from kvik_export.verify_plain import (
    KVIK_TARGETS,
    KVIK_TEXTS,
    PlainEngine,
    is_generator,
    verify_plain,
)
from kvik_train.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
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
    # Wide enough that low precisions take hold: of matrices with 4096 elements and more.
    "bert": BERTConfig(60, CONTEXT, n_layer=1, n_head=2, n_embd=64, n_feed_forward=128),
    "transformer": TransformerConfig(
        300, CONTEXT, n_layer=1, n_head=2, n_embd=64, n_feed_forward=128
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
TRANSFORMER = ("transformer", "translate", None)
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


# ---- texts, each by itself -----------------------------------------------------------------------

ENCODED = [case for case in CASES if case[3] in ("fill_mask", "classify", "tag", "answer", "embed")]
each_encoder = pytest.mark.parametrize("case", [case[:3] for case in ENCODED], ids=str)


def unequal_texts(vocab: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and types of texts of one token to almost the whole context."""
    random = np.random.default_rng(7)
    found = []
    for length in (5, CONTEXT - 2, 1, 13, 8):
        types = (np.arange(length) >= length // 2).astype(np.int64)
        found.append((random.integers(0, vocab, length), types))
    return found


def encode(model: kvik.Model, texts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    typed = model.info.reads_types
    found = model.encode(
        [ids for ids, _ in texts], [types for _, types in texts] if typed else None
    )
    return np.concatenate(
        [np.concatenate([np.atleast_2d(row) for row in rows]) for rows in found.values()], axis=1
    )


def padded_rows(path: Path, texts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The same rows from onnxruntime, which gets all texts in one padded batch."""
    width = CONTEXT
    feeds = {
        name: np.zeros((len(texts), width), np.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    for row, (ids, types) in enumerate(texts):
        feeds["input_ids"][row, : len(ids)] = ids
        feeds["attention_mask"][row, : len(ids)] = 1
        feeds["token_type_ids"][row, : len(ids)] = types
    session = onnxruntime_session(str(path))
    inputs = {item.name for item in session.get_inputs()}
    outputs = session.run(None, {name: feeds[name] for name in inputs})
    if outputs[0].ndim == 2 and outputs[0].shape[1] != width:
        return outputs[0]  # a row for each text
    stacked = np.concatenate([out.reshape(len(texts), width, -1) for out in outputs], axis=2)
    return np.concatenate([rows[: len(ids)] for rows, (ids, _) in zip(stacked, texts, strict=True)])


@each_encoder
def test_texts_without_padding_equal_a_padded_batch(files, case):
    path = files[case]
    texts = unequal_texts(50)
    expected = padded_rows(path, texts)
    got = encode(kvik.load(path, threads=2), texts)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-5 * max(1, np.abs(expected).max())


@each_encoder
@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_a_text_has_the_same_bits_alone(files, case, weights):
    texts = unequal_texts(50)
    together = encode(kvik.load(files[case], threads=3, weights=weights, max_rows=16), texts)
    single = kvik.load(files[case], threads=1, weights=weights)
    apart = np.concatenate([encode(single, [text]) for text in texts])
    assert together.tobytes() == apart.tobytes()


TEXT = "one two three four five"


def test_methods_fit_the_task(files):
    (fillings,) = kvik.load(files["bert", "mlm", None]).fill_mask("one two [MASK] four", top=3)
    assert len(fillings) == 3
    assert fillings[0].score >= fillings[1].score
    assert fillings[0].text.startswith("one two ")
    assert fillings[0].text.endswith(" four")
    two = kvik.load(files["bert", "mlm", None]).fill_mask("[MASK] two [MASK]", top=1)
    assert [len(mask) for mask in two] == [1, 1]

    for family in ("bert", "gpt"):
        model = kvik.load(files[family, "classify", None])
        found = model.classify([TEXT[:13], "three"])
        assert [item.label for item in found] == [model.classify(TEXT[:13]).label,
                                                  model.classify("three").label]  # fmt: skip
        assert list(found[0].scores) == list(LABELS)
        assert sum(found[0].scores.values()) == pytest.approx(1)
    pair = kvik.load(files["bert", "classify", None]).classify(("one two", "three"))
    assert pair.label in LABELS

    tags = kvik.load(files["bert", "tag", None]).tag(TEXT)
    assert [tag.word for tag in tags] == TEXT.split()
    assert all(TEXT[tag.start : tag.end] == tag.word and tag.label in LABELS for tag in tags)
    words = kvik.load(files["bert", "tag", None]).tag(TEXT.split())
    assert [(tag.word, tag.label) for tag in words] == [(tag.word, tag.label) for tag in tags]

    answer = kvik.load(files["bert", "answer", None]).answer("two", TEXT)
    assert TEXT[answer.start : answer.end] == answer.text
    assert 0 < answer.score <= 1

    model = kvik.load(files["bert", "mlm", "embed"])
    vectors = model.embed([TEXT, "two"])
    assert vectors.shape == (2, 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert model.embed("two").tobytes() == vectors[1].tobytes()
    rows = encode(model, [(np.array(model.tokenizer.encode("two")), np.zeros(3, np.int64))])
    assert np.allclose(model.embed("two", normalize=False), rows.mean(axis=0), atol=1e-6)
    assert np.allclose(model.embed("two", pooling="cls", normalize=False), rows[0])


def test_a_long_context_is_read_in_parts(files):
    model = kvik.load(files["bert", "answer", None])
    context = " ".join(["one", "two", "three", "four", "five"] * 12)
    answer = model.answer("two", context)
    assert context[answer.start : answer.end] == answer.text
    # Every span of at most four tokens once, however many parts have it: their scores add up to 1.
    spans = model._encoder
    whole, parts = spans._framing().windows("two", context)
    assert len(parts) > 2
    assert all(len(part.ids) <= CONTEXT for _, part in parts)
    assert sorted({begin + i for begin, part in parts for i in range(part.texts.count(1))}) == [
        place for place, text in enumerate(whole.texts) if text == 1
    ]
    logits = {}
    for begin, part in parts:
        own = model.encode([part.ids], [part.types])
        places = [i for i, text in enumerate(part.texts) if text == 1]
        start, end = (own[name][0][places, 0] for name in ("start_logits", "end_logits"))
        for i in range(len(places)):
            for j in range(i, min(i + 4, len(places))):
                key = (begin + i, begin + j)
                logits[key] = max(logits.get(key, -np.inf), float(start[i]) + float(end[j]))
    (first, last), top = max(logits.items(), key=lambda item: item[1])
    likeliest = model.answer("two", context, max_answer_tokens=4)
    assert likeliest.score == pytest.approx(1 / sum(np.exp(x - top) for x in logits.values()))
    assert (likeliest.start, likeliest.end) == (whole.offsets[first][0], whole.offsets[last][1])
    with pytest.raises(kvik.InvalidArgumentError, match="ask a shorter one"):
        model.answer(" ".join(["two"] * 30), context)


def test_what_does_not_fit_says_what_would(files):
    tagger = kvik.load(files["bert", "tag", None])
    with pytest.raises(kvik.InvalidArgumentError, match=r"whose task is tag: use tag\(\)"):
        tagger.classify(TEXT)
    with pytest.raises(kvik.InvalidArgumentError, match=r"generate\(\) does not fit"):
        tagger.generate(TEXT)
    with pytest.raises(kvik.InvalidArgumentError, match=r"text 0 has .* pass truncate=True"):
        kvik.load(files["bert", "mlm", "embed"]).embed([TEXT * 20])
    kvik.load(files["bert", "mlm", "embed"]).embed([TEXT * 20], truncate=True)
    with pytest.raises(kvik.InvalidArgumentError, match=r"has no \[MASK\]"):
        kvik.load(files["bert", "mlm", None]).fill_mask(TEXT)
    with pytest.raises(kvik.InvalidArgumentError, match="task must be one of"):
        kvik.load(files["bert", "mlm", None], task="tagg")
    with pytest.raises(kvik.InvalidArgumentError, match="texts must be a text or a list"):
        kvik.load(files["bert", "mlm", "embed"]).embed(3)
    with pytest.raises(kvik.InvalidArgumentError, match="no output 'nothing'"):
        kvik.load(files["bert", "mlm", "embed"], outputs=["nothing"])


def with_outputs(path: Path, folder: Path, extra: list[str], order: list[int]) -> Path:
    """The file with inner values of its graph as outputs too, in this order."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    inner = {item.name: item for item in model.graph.value_info}
    outputs = [*model.graph.output, *(inner[name] for name in extra)]
    del model.graph.output[:]
    model.graph.output.extend(outputs[place] for place in order)
    onnx.save(model, folder / "outputs.onnx")
    return folder / "outputs.onnx"


def test_every_task_reads_its_own_output(files, tmp_path):
    path = files["bert", "answer", None]
    expected = kvik.load(path).answer("two", TEXT)
    swapped = with_outputs(path, tmp_path, [], [1, 0])
    assert [name.name for name in kvik.load(swapped).info.outputs] == ["end_logits", "start_logits"]
    assert kvik.load(swapped).answer("two", TEXT) == expected

    path = files["bert", "tag", None]
    norms = [n for n in onnx.load(path).graph.node if n.op_type == "LayerNormalization"]
    hidden = norms[-1].output[0]
    expected = kvik.load(path).tag(TEXT)
    for order in ([0, 1], [1, 0]):
        both = with_outputs(path, tmp_path, [hidden], order)
        assert kvik.load(both).tag(TEXT) == expected
        chosen = kvik.load(both, outputs=["logits", hidden])
        assert chosen.tag(TEXT) == expected
        found = chosen.encode([[5, 6, 7]])
        assert [rows[0].shape for rows in found.values()] == [(3, 3), (3, 64)]


def test_what_contradicts_the_outputs_is_refused(files):
    with pytest.raises(kvik.InvalidArgumentError, match=r"task=tag does not fit .* a whole text"):
        kvik.load(files["bert", "classify", None], task="tag")
    with pytest.raises(kvik.InvalidArgumentError, match="outputs were chosen, but"):
        kvik.load(files["gpt", "lm", None], outputs=["logits"])
    model = kvik.load(files["gpt", "classify", None])
    with pytest.raises(kvik.InvalidArgumentError, match="which the model does not read"):
        model.encode([[1, 2]], [[0, 1]])
    with pytest.raises(kvik.InvalidArgumentError, match="types must be of as many texts"):
        model.encode([[1, 2]], [])
    with pytest.raises(kvik.InvalidArgumentError, match="ids must be a list of texts"):
        model.encode(3)
    assert model.encode([]) == {"logits": []}


def test_a_text_longer_than_the_model_is_cut_where_that_is_asked_for(files):
    model = kvik.load(files["bert", "classify", None])
    framing = model._encoder._framing()
    long, short = " ".join(["one"] * 30), "two"
    for first, second in ((long, short), (short, long), (long, long)):
        framed = framing.pair(first, second, truncate=True)
        assert len(framed.ids) == CONTEXT
        counts = [framed.texts.count(text) for text in (0, 1)]
        if first == second:
            assert abs(counts[0] - counts[1]) <= 1
        else:
            assert min(counts) == 1
    assert len(framing.text(long, truncate=True).ids) == CONTEXT
    with pytest.raises(kvik.InvalidArgumentError, match=r"shorten it$"):
        kvik.load(files["bert", "tag", None]).tag(long)
    with pytest.raises(kvik.InvalidArgumentError, match=r"text\[1\] is ''"):
        kvik.load(files["bert", "tag", None]).tag(["one", "", "two"])


def test_a_file_without_metadata_is_judged_by_its_outputs(files, tmp_path):
    expected = {"mlm": "fill_mask", "classify": "classify", "tag": "tag", "answer": "answer"}
    for task, judged in expected.items():
        model = onnx.load(files["bert", task, None])
        del model.metadata_props[:]
        path = tmp_path / f"{task}.onnx"
        onnx.save(model, path)
        assert kvik.load(path).task == judged
        assert kvik.load(path, task="embed").task == "embed"


def test_the_command_runs_every_task(files, capsys, tmp_path, monkeypatch):
    from kvik.cli.app import main

    def run(case: tuple[str, str, str | None], *arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["run", str(files[case]), *arguments])
        captured = capsys.readouterr()
        assert stopped.value.code == 0, captured.err
        return captured.out

    def refused(case: tuple[str, str, str | None], *arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["run", str(files[case]), *arguments])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    classify, tag, embed = (("bert", *rest) for rest in (("classify", None), ("tag", None),
                                                         ("mlm", "embed")))  # fmt: skip
    answer, mask = ("bert", "answer", None), ("bert", "mlm", None)
    assert sorted(line.split()[1] for line in run(classify, TEXT).splitlines()) == sorted(LABELS)
    assert len(run(classify, "one", "two").splitlines()) == 2
    assert [line.split("\t")[0] for line in run(tag, TEXT).splitlines()] == TEXT.split()
    found = json.loads(run(answer, TEXT, "--question", "two", "--json"))
    assert TEXT[found["start"] : found["end"]] == found["text"]
    assert len(run(mask, "one [MASK]", "--top", "2").splitlines()) == 2
    assert run(embed, "one", "two").split()[0] == "1.000"
    run(embed, "one", "two", "--out", str(tmp_path / "v.npy"))
    assert np.load(tmp_path / "v.npy").shape == (2, 64)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert len(run(classify, "-").splitlines()) == 2

    assert "give one with --question" in refused(answer, TEXT)
    assert "--question is for models that answer" in refused(tag, TEXT, "--question", "two")
    assert "ends in .npy" in refused(embed, TEXT, "--out", "vectors.txt")
    assert "can't write" in refused(embed, TEXT, "--out", str(tmp_path / "no" / "v.npy"))
    assert "does not fit a model of one sequence" in refused(tag, TEXT, "--task", "translate")
    assert "task must be one of" in refused(tag, TEXT, "--task", "tagg")

    assert len(run(TRANSFORMER, "one", "two three", "--beams", "2").splitlines()) == 2
    best = json.loads(run(TRANSFORMER, "one", "--n-best", "3", "--json"))["translations"]
    assert len(best) == 3
    assert best[0]["text"] == run(TRANSFORMER, "one").rstrip("\n")
    assert "beams must be at least 1" in refused(TRANSFORMER, "one", "--beams", "0")
    for case, command in ((TRANSFORMER, "generate"), (tag, "generate"), (TRANSFORMER, "bench")):
        arguments = ["one"] if command == "generate" else ["--prompt-tokens", "4"]
        with pytest.raises(SystemExit) as stopped:
            main([command, str(files[case]), *arguments])
        assert stopped.value.code == 2
        assert "continues no texts, its task is t" in capsys.readouterr().err


# ---- two sequences -------------------------------------------------------------------------------


def logits_in_pieces(
    core: _core.Model, sequences: list[_core.Sequence], texts: list[np.ndarray], step: int
) -> list[np.ndarray]:
    """Logits [tokens, vocab] of each text, all fed together in pieces of `step` tokens."""
    found: list[list[np.ndarray]] = [[] for _ in texts]
    for begin in range(0, max(map(len, texts)), step):
        part = [(i, text[begin : begin + step]) for i, text in enumerate(texts)]
        part = [(i, ids) for i, ids in part if len(ids)]
        rows = core.forward([(sequences[i], ids, _core.Logits.ALL) for i, ids in part])
        for (i, ids), own in zip(
            part, np.split(rows, np.cumsum([len(ids) for _, ids in part])[:-1]), strict=True
        ):
            assert len(own) == len(ids)
            found[i].append(own)
    return [np.concatenate(parts) for parts in found]


def target_logits(model: kvik.Model, pairs: list[tuple[np.ndarray, np.ndarray]], *, step: int):
    """Logits [target, vocab] of each pair."""
    sequences = model._core.new_sequences([source for source, _ in pairs])
    return logits_in_pieces(model._core, sequences, [target for _, target in pairs], step)


def unequal_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(11)
    sizes = ((5, 7), (1, 1), (CONTEXT, 3), (2, CONTEXT), (13, 13))
    return [(random.integers(0, 300, s), random.integers(0, 300, t)) for s, t in sizes]


def test_a_source_is_computed_once_and_the_target_row_by_row(files):
    path, pairs = files[TRANSFORMER], unequal_pairs()
    model = kvik.load(path, threads=2, max_rows=16)
    assert model.info.incremental
    assert "the source alone" in model.explain()
    feeds = {
        "source_ids": np.zeros((len(pairs), CONTEXT), np.int64),
        "source_mask": np.zeros((len(pairs), CONTEXT), np.int64),
        "target_ids": np.zeros((len(pairs), CONTEXT), np.int64),
    }
    for row, (source, target) in enumerate(pairs):
        feeds["source_ids"][row, : len(source)] = source
        feeds["source_mask"][row, : len(source)] = 1
        feeds["target_ids"][row, : len(target)] = target
    (expected,) = onnxruntime_session(str(path)).run(["logits"], feeds)
    together = target_logits(model, pairs, step=CONTEXT)
    for own, padded in zip(together, expected, strict=True):
        assert np.abs(own - padded[: len(own)]).max() < 1e-5 * max(1, np.abs(padded).max())


@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_a_target_has_the_same_bits_in_any_pieces_and_company(files, weights):
    pairs = unequal_pairs()
    model = kvik.load(files[TRANSFORMER], threads=3, weights=weights)
    kept = {matrix.weights for matrix in model._core.matrices() if matrix.multiplied}
    assert kept == {weights}
    together = target_logits(model, pairs, step=CONTEXT)
    single = kvik.load(files[TRANSFORMER], threads=1, weights=weights)
    for pair, own in zip(pairs, together, strict=True):
        for step in (1, 4):
            assert target_logits(single, [pair], step=step)[0].tobytes() == own.tobytes()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_both_sequences_are_quantised(files, weights, tmp_path):
    path = tmp_path / "small.onnx"
    result = quantize_model(files[TRANSFORMER], path, weights=weights)
    assert not [one for one in result.kept if "Linear" in one.reason]
    shared = [one for one in result.matrices if one.shape == (300, 64)]
    assert len(shared) == (1 if weights == "int8" else 2)  # rows in 8 bits beside columns in 4
    pairs = unequal_pairs()
    expected = target_logits(kvik.load(files[TRANSFORMER], weights=weights), pairs, step=CONTEXT)
    found = target_logits(kvik.load(path), pairs, step=CONTEXT)
    assert [own.tobytes() for own in found] == [own.tobytes() for own in expected]


def test_forks_share_a_source(files):
    core = kvik.load(files[TRANSFORMER], threads=1)._core
    (one,) = core.new_sequences([np.array([5, 6, 7])])
    core.forward([(one, np.array([1, 8]), _core.Logits.NONE)])
    other = one.fork()
    del one
    next_token = [(other, np.array([9]), _core.Logits.LAST)]
    expected = target_logits(
        kvik.load(files[TRANSFORMER], threads=1), [(np.array([5, 6, 7]), np.array([1, 8, 9]))],
        step=3,
    )  # fmt: skip
    assert core.forward(next_token)[0].tobytes() == expected[0][2].tobytes()


def test_translations(files, capsys):
    model = kvik.load(files[TRANSFORMER], threads=2)
    texts = ["one two", "three", "four five"]
    best = model.translate(texts, n_best=3, beams=5)
    assert [len(found) for found in best] == [3, 3, 3]
    assert [found[0].text for found in best] == model.translate(texts, beams=5)
    for text, found in zip(texts, best, strict=True):
        assert model.translate(text, n_best=3, beams=5) == found
        assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)
    greedy = model.translate("one two", beams=1, n_best=1, max_new_tokens=4)[0]
    ids, tokens = model.tokenizer.encode("one two"), [1]
    for _ in greedy.ids:
        logits = target_logits(model, [(np.array(ids), np.array(tokens))], step=CONTEXT)[0]
        tokens.append(int(logits[-1].argmax()))
    assert tokens[1:] == greedy.ids
    assert model.translate([]) == []
    with pytest.raises(kvik.InvalidArgumentError, match="beams must be at most 256"):
        model.translate("one", beams=1000)
    with pytest.raises(kvik.InvalidArgumentError, match="n_best must be at most 2"):
        model.translate("one", beams=2, n_best=3)
    with pytest.raises(kvik.InvalidArgumentError, match=r"use translate\(\)"):
        model.generate("one")
    with pytest.raises(kvik.InvalidArgumentError, match="does not fit a model of one sequence"):
        kvik.load(files["bert", "tag", None], task="translate")
    with pytest.raises(kvik.InvalidArgumentError, match="needs a source"):
        model._core.new_sequence()
    with pytest.raises(kvik.InvalidArgumentError, match="source 0: no tokens"):
        model._core.new_sequences([np.zeros(0, np.int64)])


def test_targets_are_scored_and_give_logits(files):
    model = kvik.load(files[TRANSFORMER], threads=2)
    source = model.tokenizer.encode("one two")
    found = model.translate("one two", n_best=4, length_penalty=0, max_new_tokens=6)
    for one in found:
        ids = [1, *one.ids, *model.stop_ids[: one.ended]]
        score = model.score(ids, source="one two")
        assert score.total == pytest.approx(one.log_probability, abs=1e-4)
        assert (
            model.score(ids, source=source).logprobs[1:].tobytes() == score.logprobs[1:].tobytes()
        )
    target = np.array([1, 7, 9, 30])
    logits = model.logits(target, source=source, chunk=2)
    assert logits.tobytes() == model.logits(target, source="one two", cache=False).tobytes()
    (expected,) = target_logits(model, [(np.array(source), target)], step=4)
    assert logits.tobytes() == expected.tobytes()
    text = model.score("three", source="one two")
    assert text.ids == [1, *model.tokenizer.encode("three"), model.stop_ids[0]]
    with pytest.raises(kvik.InvalidArgumentError, match="needs source="):
        model.score("three")
    with pytest.raises(kvik.InvalidArgumentError, match="source 0: no tokens"):
        model.logits([1], source=[])
    with pytest.raises(kvik.InvalidArgumentError, match=r"source\[1\]"):
        model.logits([1], source=[3, 10_000_000])
    with pytest.raises(kvik.InvalidArgumentError, match=r"use translate\(\)"):
        next(model.stream("one"))
    with pytest.raises(kvik.InvalidArgumentError, match="source= is for models that translate"):
        kvik.load(files["bert", "tag", None]).score("one", source="two")


def test_a_refused_proof_of_two_sequences_says_why(tmp_path):
    graph = onnx.parser.parse_graph("""
        g (int64[b, s] source_ids, int64[b, t] target_ids) => (float[b, t, 8] logits)
        <int64[1] axis = {1}> {
            x = Gather(table, source_ids)
            mean = ReduceMean(x, axis)
            y = Gather(table, target_ids)
            logits = Add(y, mean)
        }""")
    table = np.zeros((30, 8), np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    path = tmp_path / "mean.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    with pytest.raises(
        kvik.UnsupportedError, match="'mean' is of the source: it may be read as keys"
    ):
        kvik.load(path)


def test_two_sequences_without_metadata(files, tmp_path):
    model = onnx.load(files[TRANSFORMER])
    del model.metadata_props[:]
    path = tmp_path / "plain.onnx"
    onnx.save(model, path)
    assert kvik.load(path).task == "translate"


# ---- images --------------------------------------------------------------------------------------

VIT, CNN = ("vit", "classify-image", None), ("cnn", "classify-image", None)


@pytest.mark.parametrize("case", [VIT, CNN], ids=str)
def test_images_as_onnxruntime_classifies_them(files, case):
    channels = MODELS[case[0]].channels
    pixels = np.random.default_rng(8).integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    images = ((pixels / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    (logits,) = onnxruntime_session(str(files[case])).run(None, {"image": images})
    model = kvik.load(files[case], threads=2)
    assert model.task == "classify_image"
    exact = model._core.encode_images(images)
    assert np.abs(exact - logits).max() < 1e-5 * np.abs(logits).max()
    found = model.classify(pixels)
    assert [item.label for item in found] == [LABELS[i] for i in logits.argmax(axis=1)]
    logits = logits.astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = np.array([list(item.scores.values()) for item in found])
    assert np.abs(scores - chances).max() < 1e-5


@pytest.mark.parametrize("case", [VIT, CNN], ids=str)
@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_an_image_has_the_same_bits_alone(files, case, weights):
    channels = MODELS[case[0]].channels
    images = np.random.default_rng(9).standard_normal((37, channels, 8, 8)).astype(np.float32)
    together = kvik.load(files[case], threads=3, weights=weights)._core.encode_images(images)
    single = kvik.load(files[case], threads=1, weights=weights)
    apart = np.concatenate([single._core.encode_images(image[None]) for image in images])
    assert together.tobytes() == apart.tobytes()


@pytest.fixture(scope="module")
def wide_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With matrices large enough to be worth quantising."""
    folder = tmp_path_factory.mktemp("wide")
    config = ViTConfig(8, 3, patch_size=4, n_layer=2, n_head=2, n_embd=64, n_feed_forward=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "vit", config)
        export_checkpoint(make_run(folder / "run", "vit", "classify-image"), folder / "vit.onnx")
    return folder / "vit.onnx"


def test_a_session_has_the_precisions_of_a_model(wide_vit):
    images = np.random.default_rng(9).standard_normal((5, 3, 8, 8)).astype(np.float32)
    exact = kvik.load(wide_vit)._core.encode_images(images)
    errors = {}
    for weights in ("f32", "bf16", "int8", "int4"):
        model = kvik.load(wide_vit, weights=weights)
        session = kvik.InferenceSession(wide_vit, weights=weights)
        (logits,) = session.run(None, {"image": images})
        assert model._core.encode_images(images).tobytes() == logits.tobytes()
        errors[weights] = float(np.abs(logits - exact).max() / np.abs(exact).max())
        assert model.info.weights == weights
    assert errors["f32"] == 0 < errors["bf16"] < errors["int8"] < errors["int4"] < 0.5
    sizes = [kvik.load(wide_vit, weights=w).info.packed_bytes for w in ("f32", "int8", "int4")]
    assert sizes[0] > 2.5 * sizes[1] > 2.5 * 1.3 * sizes[2]
    with pytest.raises(kvik.InvalidArgumentError, match="weights must be"):
        kvik.InferenceSession(wide_vit, weights="int3")


# ---- vectors of a causal model -----------------------------------------------------------------


@pytest.fixture(scope="module")
def causal_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last hidden states of a GPT, as a file that somebody else exported."""
    folder = tmp_path_factory.mktemp("causal")
    run = make_run(folder / "run", "gpt", "classify")
    model = load_checkpoint(run)[0]

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = model.backbone.eval()

        def forward(self, input_ids):
            return self.backbone.hidden(input_ids)

    torch.onnx.export(
        Hidden().eval(), (torch.zeros(2, 7, dtype=torch.int64),), folder / "hidden.onnx",
        dynamo=True,
        input_names=["input_ids"], output_names=["last_hidden_state"], external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")},),
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(tokenizer_path(run).read_text())
    return folder / "hidden.onnx"


def test_a_causal_model_embeds(causal_embedder):
    model = kvik.load(causal_embedder)
    assert model.info.incremental
    assert model.task == "embed"  # told by its output
    session = onnxruntime_session(str(causal_embedder))
    texts = ["one two three", "four", "one two"]
    ids = [model.tokenizer.encode(text) for text in texts]
    rows = [session.run(None, {"input_ids": np.array([own])})[0][0] for own in ids]
    for found, expected in zip(model.encode(ids)["last_hidden_state"], rows, strict=True):
        assert np.abs(found - expected).max() < 1e-5
    pools = {"last": lambda x: x[-1], "cls": lambda x: x[0], "max": lambda x: x.max(axis=0),
             "mean": lambda x: x.mean(axis=0)}  # fmt: skip
    for pooling, pool in pools.items():
        vectors = model.embed(texts, pooling=pooling, normalize=False)
        assert np.abs(vectors - np.stack([pool(own) for own in rows])).max() < 1e-5
    assert (model.embed(texts) == model.embed(texts, pooling="last")).all()
    assert np.allclose(np.linalg.norm(model.embed(texts), axis=1), 1)
    assert model.embed(texts)[1].tobytes() == model.embed("four").tobytes()
    assert model.embed([]).shape == (0, 16)
    assert model.encode([]) == {"last_hidden_state": []}
    with pytest.raises(kvik.InvalidArgumentError, match="whose task is embed"):
        model.generate("one")
    with pytest.raises(kvik.InvalidArgumentError, match="no token types"):
        model.encode([[1]], [[0]])
    assert "task embed" in repr(model)
