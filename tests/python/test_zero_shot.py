"""Labels as continuations: their scores are those of score(), however the tokens are cut."""

from __future__ import annotations

import numpy as np
import pytest

import kvik

LABELS = ["cat", "horse", "ox"]


@pytest.fixture(scope="module")
def model(text_path):
    return kvik.load(text_path, threads=2)


def log_likelihood(model, text, begin):
    """Of text[begin:], ASCII, whose tokens are bytes."""
    return model.score(text).logprobs[begin:].sum()


def softmax(x):
    e = np.exp(np.asarray(x) - max(x))
    return e / e.sum()


def test_scores_are_of_the_label_and_what_follows(model):
    found = model.classify("ab", labels=LABELS, template="<{text}> is a {label}!")
    before = "<ab> is a "
    totals = [log_likelihood(model, f"{before}{name}!", len(before)) for name in LABELS]
    assert list(found.scores) == LABELS
    assert np.abs(np.array(list(found.scores.values())) - softmax(totals)).max() < 1e-6
    assert found.label == LABELS[int(np.argmax(totals))]
    assert found.score == found.scores[found.label]

    found = model.classify(
        "ab", labels=LABELS, template="<{text}> is a {label}!", normalization="length"
    )
    means = [total / (len(name) + 1) for total, name in zip(totals, LABELS, strict=True)]
    assert np.abs(np.array(list(found.scores.values())) - softmax(means)).max() < 1e-6

    found = model.classify(
        "ab", labels=LABELS, template="<{text}> is a {label}!", normalization="prior"
    )
    prior = [log_likelihood(model, f"<> is a {name}!", 8) for name in LABELS]
    assert np.abs(
        np.array(list(found.scores.values())) - softmax(np.subtract(totals, prior))
    ).max() < 1e-6  # fmt: skip


def test_what_labels_share_does_not_count(model):
    """The first letters of all labels are the text's, to both."""
    found = model.classify("ab", labels=["xyz", "xyw"])
    totals = [log_likelihood(model, f"ab {name}", 5) for name in ("xyz", "xyw")]
    assert np.abs(np.array(list(found.scores.values())) - softmax(totals)).max() < 1e-6


def test_a_label_that_begins_another_must_end(model):
    found = model.classify("ab", labels=["ox", "oxen"])
    end = model.stop_ids[0]

    def total(text, begin):
        ids = [*model.tokenizer.encode(text), end]
        return model.score(ids).logprobs[begin:].sum()

    wanted = softmax([total("ab ox", 5), total("ab oxen", 5)])
    assert np.abs(np.array(list(found.scores.values())) - wanted).max() < 1e-6


def test_nothing_before_the_labels(model):
    """A text begins where another ended."""
    found = model.classify("", labels=LABELS, template="{text}{label}")
    end = model.stop_ids[0]
    totals = [
        model.score([end, *model.tokenizer.encode(name)]).logprobs[1:].sum() for name in LABELS
    ]
    assert np.abs(np.array(list(found.scores.values())) - softmax(totals)).max() < 1e-6


def test_a_list_and_one_text_agree(model):
    texts = ["a", "quite another text", ""]
    together = model.classify(texts, labels=LABELS)
    assert together == [model.classify(text, labels=LABELS) for text in texts]
    assert model.classify([], labels=LABELS) == []


def test_many_labels_run_in_parts(model):
    names = [f"label number {i}" for i in range(100)]
    found = model.classify("ab", labels=names)
    few = model.classify("ab", labels=names[:2])
    assert found.scores[names[0]] / found.scores[names[1]] == pytest.approx(
        few.scores[names[0]] / few.scores[names[1]], rel=1e-4
    )


def test_a_long_text_loses_its_end(model):
    limit = model.info.context_length
    assert limit is not None
    with pytest.raises(kvik.InvalidArgumentError, match=r"text 0 has .* with its label, more than"):
        model.classify("x" * 2 * limit, labels=LABELS)
    cut = model.classify("x" * 2 * limit, labels=LABELS, truncate=True)
    assert cut == model.classify("x" * (limit - 6), labels=LABELS)
    with pytest.raises(kvik.InvalidArgumentError, match="template and a label alone"):
        model.classify("x", labels=["y" * limit, "z" * limit], truncate=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"this model generates: name the labels to choose from with labels=\[...\]"),
        ({"labels": "a,b"}, "labels must be a list of names"),
        ({"labels": ["a"]}, "two different texts at least"),
        ({"labels": ["a", "a"]}, "two different texts"),
        ({"labels": ["a", ""]}, "none empty"),
        ({"labels": ["a", 3]}, "labels must be names"),
        ({"labels": LABELS, "template": "{label}"}, "{text} and {label} once each"),
        ({"labels": LABELS, "template": "{text} {label} {label}"}, "once each"),
        ({"labels": LABELS, "template": "{text} {label:9}"}, "once each"),
        ({"labels": LABELS, "template": "{text {label}"}, "template is"),
        ({"labels": LABELS, "template": 3}, "template must be a text"),
        ({"labels": LABELS, "normalization": "mean"}, "'none', 'length' or 'prior'"),
    ],
)
def test_options_that_can_not_be(model, options, message):
    with pytest.raises(kvik.InvalidArgumentError, match=message):
        model.classify("ab", **options)


def test_a_model_that_recomputes_does_it_too(text_path, tmp_path):
    """Sequences of any decoder fork."""
    import onnx
    from onnx import helper

    file = onnx.load(text_path)
    # Later tokens reach earlier ones: nothing can be cached.
    file.graph.node.append(helper.make_node("ReduceMean", ["logits"], ["level"], keepdims=1))
    file.graph.node.append(helper.make_node("Sub", ["logits", "level"], ["centred"]))
    file.graph.output[0].name = "centred"
    onnx.save(file, tmp_path / "whole.onnx")
    model = kvik.load(tmp_path / "whole.onnx", task="generate")
    assert not model.info.incremental
    found = model.classify("ab", labels=LABELS)
    assert sum(found.scores.values()) == pytest.approx(1)
    assert found.label == kvik.load(text_path).classify("ab", labels=LABELS).label


def test_no_tokenizer(plain_path):
    with pytest.raises(kvik.InvalidArgumentError, match="texts need a tokenizer"):
        kvik.load(plain_path).classify("ab", labels=LABELS)
