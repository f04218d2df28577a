"""Attention weights of every family: torch's, computed eagerly, equal the engine's."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.export import families
from tests.export.families import CONTEXT, make_run
from torch.nn import functional as F

import kvik
from kvik.cli import main
from kvik_export.exporter import export_checkpoint
from kvik_train.checkpoint import load_checkpoint

TOLERANCE = 1e-5
SIZES = {
    "gpt": {"n_layer": 3, "n_head": 4, "context_length": 200},
    "bert": {"n_layer": 2},
    "transformer": {"n_layer": 2},
    "vit": {"n_layer": 2},
}


class Made:
    """A file and the torch model that it was exported from."""

    def __init__(self, folder: Path, family: str, task: str) -> None:
        self.path = folder / "model.onnx"
        self.run = make_run(folder / "run", family, task)
        export_checkpoint(self.run, self.path)

    def torch_weights(self, monkeypatch, *inputs):
        """What each attention's softmax gives, in the order of their calls; and the outputs."""
        found = []

        def eager(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **_):
            scores = q.double() @ k.double().transpose(-2, -1) / math.sqrt(q.shape[-1])
            if is_causal:
                shown = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
                scores = scores.masked_fill(~shown, -math.inf)
            if attn_mask is not None:
                scores = scores.masked_fill(~attn_mask, -math.inf)
            weights = scores.softmax(dim=-1)
            found.append(weights[0].numpy())
            return (weights @ v.double()).to(v.dtype)

        monkeypatch.setattr(F, "scaled_dot_product_attention", eager)
        model = load_checkpoint(self.run)[0]
        with torch.inference_mode():
            out = model(*(torch.as_tensor(x) for x in inputs))
        monkeypatch.undo()
        return found, out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files by family and task, exported when first asked for."""

    class All(dict):
        def __missing__(self, case: tuple[str, str]) -> Made:
            with pytest.MonkeyPatch.context() as patch:
                for family, sizes in SIZES.items():
                    model = replace(families.MODELS[family], **sizes)
                    patch.setitem(families.MODELS, family, model)
                self[case] = Made(tmp_path_factory.mktemp("run"), *case)
            return self[case]

    return All()


def same(found: np.ndarray, expected: list[np.ndarray]) -> None:
    assert found.dtype == np.float32
    assert found.shape == (len(expected), *expected[0].shape)
    want = np.stack(expected)
    np.testing.assert_allclose(found, want, rtol=0, atol=TOLERANCE)
    assert (found[want == 0] == 0).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", ["f32", "int8"])
def test_gpt(made, monkeypatch, weights):
    case = made["gpt", "lm"]
    model = kvik.load(case.path, weights=weights)
    text = "one two three"
    ids = model.tokenizer.encode(text)
    found = model.attention(text)
    expected, _ = case.torch_weights(monkeypatch, [ids])
    assert found.tokens == found.keys == list(text)
    assert found.kind == "self"
    assert found.layers == [0, 1, 2]
    if weights == "int8":  # of matrices so small nothing is quantised: the same file
        np.testing.assert_allclose(found.weights, np.stack(expected), rtol=0, atol=0.05)
        return
    same(found.weights, expected)
    assert (found.weights[0, 0][np.triu_indices(len(ids), 1)] == 0).all()
    np.testing.assert_array_equal(model.attention(ids).weights, found.weights)
    np.testing.assert_array_equal(model.attention(np.array(ids)).weights, found.weights)
    some = model.attention(text, layers=[2, 0])
    assert some.layers == [0, 2]
    assert some.names == [found.names[0], found.names[2]]
    np.testing.assert_array_equal(some.weights, found.weights[[0, 2]])
    np.testing.assert_array_equal(model.attention(text, layers=1).weights, found.weights[1:2])


def test_prefix_and_chunks(made):
    """A row is the same in a longer text, whatever the chunks and threads."""
    path = made["gpt", "lm"].path
    ids = [int(i) for i in np.random.default_rng(1).integers(0, 60, 150)]
    whole = kvik.load(path, threads=2).attention(ids).weights
    part = kvik.load(path, threads=1, max_rows=7).attention(ids[:99]).weights
    np.testing.assert_array_equal(part, whole[:, :, :99, :99])
    recomputed = kvik.load(path).attention(ids).weights
    np.testing.assert_array_equal(recomputed, whole)


def test_bert(made, monkeypatch):
    case = made["bert", "mlm"]
    model = kvik.load(case.path)
    found = model.attention(("one two", "three"))
    assert found.tokens == ["[CLS]", "one", "two", "[SEP]", "three", "[SEP]"]
    framed = model.tokenizer.frame("one two", "three")
    expected, _ = case.torch_weights(
        monkeypatch, [framed.ids], [[1] * len(framed.ids)], [framed.type_ids]
    )
    same(found.weights, expected)
    alone = model.attention("one two")
    expected, _ = case.torch_weights(monkeypatch, [framed.ids[:4]], [[1] * 4], [[0] * 4])
    same(alone.weights, expected)


def test_classifier_that_is_causal(made, monkeypatch):
    case = made["gpt", "classify"]
    model = kvik.load(case.path)
    found = model.attention("one two")
    ids = model.tokenizer.encode("one two")
    assert found.tokens[-1] == "<|endoftext|>"
    expected, _ = case.torch_weights(monkeypatch, [ids], [[1] * len(ids)])
    same(found.weights, expected)


def test_transformer(made, monkeypatch):
    case = made["transformer", "translate"]
    model = kvik.load(case.path)
    found = model.attention("one two", "two")
    source = model.tokenizer.encode("one two")
    target = [model.tokenizer.id_of(token) for token in ("<s>", *"two")]
    assert found.keys == [*"one two", "</s>"]
    assert found.tokens == ["<s>", *"two"]
    expected, _ = case.torch_weights(monkeypatch, [source], [[1] * len(source)], [target])
    # The source's layers run first, then each of the target's: itself, and the source.
    same(found["source"].weights, expected[:2])
    same(found["self"].weights, expected[2::2])
    same(found["cross"].weights, expected[3::2])
    np.testing.assert_array_equal(found.weights, found["cross"].weights)
    assert [own.kind for own in found] == ["self", "cross", "source"]
    assert found["source"].tokens == found["source"].keys == found.keys
    assert found["self"].keys == found.tokens

    by_ids = model.attention(source, target, kind="cross", layers=1)
    assert [own.kind for own in by_ids] == ["cross"]
    assert by_ids.layers == [1]
    np.testing.assert_array_equal(by_ids.weights, found["cross"].weights[1:])
    with pytest.raises(kvik.InvalidArgumentError, match="no 'self' attention here; there is cross"):
        by_ids["self"]


def test_greedy_target(made):
    model = kvik.load(made["transformer", "translate"].path)
    found = model.attention("one two")
    [best] = model.translate("one two", beams=1, n_best=1, length_penalty=0)
    start = model.tokenizer.id_of("<s>")
    ids = [start, *best.ids][:CONTEXT]
    again = model.attention("one two", ids)
    assert again.tokens == found.tokens
    np.testing.assert_array_equal(again.weights, found.weights)


def test_seq2seq(made, monkeypatch):
    case = made["seq2seq", "translate"]
    source, target = [5, 6, 7, 8], [1, 4, 5]
    found = kvik.load(case.path).attention(source, target)
    assert [own.kind for own in found] == ["cross"]
    _, (_, alignments) = case.torch_weights(
        monkeypatch, np.array([source]), np.ones((1, 4), np.int64), np.array([target])
    )
    np.testing.assert_allclose(found.weights[0], alignments, rtol=0, atol=TOLERANCE)


def test_seq2seq_by_session(made, monkeypatch):
    case = made["seq2seq", "translate"]
    session = kvik.InferenceSession(case.path)
    source, target = np.array([[5, 6, 7, 8], [9, 5, 6, 7]]), np.array([[1, 4, 5], [1, 7, 8]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    feeds = {"source_ids": source, "source_mask": mask, "target_ids": target}
    [found] = session.attention(feeds)
    _, (_, alignments) = case.torch_weights(monkeypatch, *feeds.values())
    assert (found.kind, found.queries, found.keys) == ("cross", "target", "source")
    assert found.weights.shape == (1, 2, 1, 3, 4)
    np.testing.assert_allclose(found.weights[0, :, 0], alignments, rtol=0, atol=TOLERANCE)
    assert (found.weights[0, 1, 0, :, 2:] == 0).all()


def test_vit_by_session(made, monkeypatch):
    case = made["vit", "classify-image"]
    image = np.random.default_rng(2).standard_normal((1, 3, 8, 8), dtype=np.float32)
    [found] = kvik.InferenceSession(case.path).attention({"image": image})
    expected, _ = case.torch_weights(monkeypatch, image)
    same(found.weights[:, 0], expected)


def test_vit(made):
    case = made["vit", "classify-image"]
    model = kvik.load(case.path)
    image = np.random.default_rng(2).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    found = model.attention(image)
    assert found.tokens == found.keys == ["class", "1,1", "1,2", "2,1", "2,2"]
    pixels = model._images.read(image)[None]
    [session] = kvik.InferenceSession(case.path).attention({"image": pixels})
    np.testing.assert_array_equal(found.weights, session.weights[:, 0])
    assert model.attention(image, layers=0).layers == [0]
    with pytest.raises(kvik.InvalidArgumentError, match="target is for translators"):
        model.attention(image, "two")


def test_transformer_by_session(made):
    """The general executor knows the kinds by the symbols of the dimensions."""
    case = made["transformer", "translate"]
    model = kvik.load(case.path)
    source, target = [5, 6, 7, 8, 2], [1, 9, 10]
    rows = model.attention(source, target)
    feeds = {"source_ids": [source], "source_mask": [[1] * 5], "target_ids": [target]}
    session = kvik.InferenceSession(case.path)
    found = session.attention({name: np.array(value) for name, value in feeds.items()})
    assert [own.kind for own in found] == ["self", "cross", "source"]
    for own, peer in zip(found, rows, strict=True):
        np.testing.assert_allclose(own.weights[:, 0], peer.weights, rtol=0, atol=1e-6)
    arrays = {name: np.array(value) for name, value in feeds.items()}
    [last] = session.attention(arrays, kind="cross", layers=[1])
    assert last.layers == [1]
    np.testing.assert_array_equal(last.weights, found[1].weights[1:])


def test_without_attention(made):
    case = made["lstm", "lm"]
    with pytest.raises(kvik.UnsupportedError, match="the model has no attention"):
        kvik.load(case.path).attention("one")
    with pytest.raises(kvik.UnsupportedError, match="the model has no attention"):
        kvik.InferenceSession(case.path).attention({"ids": np.array([[1, 2]])})


def draw(capsys, *arguments) -> str:
    """What `kvik attention` says."""
    with pytest.raises(SystemExit) as ended:
        main(["attention", *map(str, arguments)])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    return captured.out


def test_drawings(made, tmp_path, capsys):
    """Of every kind of model."""
    out = tmp_path / "map.svg"
    path = made["transformer", "translate"].path
    said = draw(capsys, path, "one two", "--target", "two", "-o", out)
    assert "cross-attention, mean of 2 heads, every layer, 4 x 8 tokens" in said
    said = draw(capsys, path, "one two", "--kind", "source", "--layer", "1", "-o", out)
    assert "attention within the source, layer 1, all 2 heads, 8 x 8 tokens" in said
    path = made["bert", "mlm"].path
    assert "6 x 6 tokens" in draw(capsys, path, "one two", "--pair", "three", "-o", out)
    path = made["seq2seq", "translate"].path
    said = draw(capsys, path, "one two", "--target", "two", "-o", out)
    assert "cross-attention, layer 0, one head, 4 x 8 tokens" in said
    assert "cross-attention, layer 0, one head" in draw(capsys, path, "one two", "-o", out)
    image = tmp_path / "image.png"
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGB", (30, 20), "red").save(image)
    path = made["vit", "classify-image"].path
    assert "5 x 5 tokens" in draw(capsys, path, image, "--layer", "1", "-o", out)
    assert ">class<" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "one", "target": "two"}, "target is for translators"),
        ({"text": "one", "kind": "cross"}, "kind='cross' is for translators"),
        ({"text": "one", "kind": "other"}, "kind must be 'self', 'cross' or 'source'"),
        ({"text": "one", "layers": 3}, r"layer 3 of the attention; the model has 3, 0 to 2"),
        ({"text": "one", "layers": [-1]}, "layers must be at least 0"),
        ({"text": "one", "layers": "1"}, "layers must be an integer or a list"),
        ({"text": "one", "layers": []}, "layers is empty"),
        ({"text": ""}, "is empty"),
        ({"text": [1, 300]}, "300"),
        ({"text": 3}, "token ids"),
    ],
)
def test_impossible_arguments(made, arguments, message):
    model = kvik.load(made["gpt", "lm"].path)
    with pytest.raises(kvik.InvalidArgumentError, match=message):
        model.attention(**arguments)


def test_long_texts(made):
    model = kvik.load(made["bert", "mlm"].path)
    text = "one two " * 15
    with pytest.raises(kvik.InvalidArgumentError, match=r"has 32 tokens, more than the 20"):
        model.attention(text)
    assert len(model.attention(text, truncate=True).tokens) == CONTEXT
    translator = kvik.load(made["transformer", "translate"].path)
    with pytest.raises(kvik.InvalidArgumentError, match="the source has 41 tokens"):
        translator.attention("one " * 10, "one")
    with pytest.raises(kvik.InvalidArgumentError, match="target: 41 tokens exceed"):
        translator.attention("one", "one " * 10)
    with pytest.raises(kvik.InvalidArgumentError, match="target: no tokens"):
        translator.attention("one", [])
