"""Models that read a text as a whole: BERT and its tasks; a GPT that classifies, or embeds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest
import torch
from tests.export.families import (
    CASES,
    CONTEXT,
    LABELS,
    TRANSFORMER,
    make_run,
)

import kvik
from kvik_export.engines import onnxruntime_session
from kvik_train.checkpoint import load_checkpoint
from kvik_train.data.prepare import tokenizer_path

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


@pytest.mark.parametrize(
    ("case", "encoded", "per_token"),
    [
        (("bert", "mlm", None), {"logits": 60}, True),
        (("bert", "classify", None), {"logits": 3}, False),
        (("bert", "answer", None), {"start_logits": 1, "end_logits": 1}, True),
        (("vit", "classify-image", None), {"logits": 3}, False),
        (("lstm", "lm", None), {}, False),
    ],
    ids=str,
)
def test_info_says_what_is_encoded(files, case, encoded, per_token):
    info = kvik.load(files[case]).info
    assert info.encoded == encoded
    assert info.encoded_per_token == per_token


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
