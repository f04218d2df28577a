"""Encoder-decoders: a source computed once, and targets row by row."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest
from tests.export.families import (
    CONTEXT,
    TRANSFORMER,
    target_logits,
    unequal_pairs,
)

import kvik
from kvik import _core
from kvik_export.engines import onnxruntime_session
from kvik_export.quantize import quantize_model


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
