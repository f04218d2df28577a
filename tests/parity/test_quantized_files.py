"""`kvik quantize` on exported models: logits are bitwise those of quantising at load, and close to
onnxruntime's on the same file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import kvik
from kvik import _core
from kvik_export.quantize import quantize_model
from parity.selection import POSITIVE

# Sizes that are no multiple of a panel or of a group of 32.
WIDTH, HIDDEN, VOCAB, CONTEXT = 72, 136, 131, 96


def export_gpt(path: Path, *, tie: bool, opset: int) -> None:
    from kvik_export.exporter import export_module
    from kvik_train.models.gpt import GPT, GPTConfig

    config = GPTConfig(vocab_size=VOCAB, context_length=CONTEXT, n_layer=2, n_head=4, n_embd=WIDTH,
                       tie_weights=tie)  # fmt: skip
    torch.manual_seed(5)
    export_module(GPT(config), path, vocab_size=VOCAB, context_length=CONTEXT, opset=opset)


def export_llama(path: Path, *, tie: bool, opset: int) -> None:
    import transformers

    from parity.zoo.torch_export import PlainForward, export_dynamo
    from parity.zoo.transformers_models import common

    sizes = common(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN)
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=tie)
    torch.manual_seed(6)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    export_dynamo(PlainForward(model), path, vocab=VOCAB, opset=opset)


@pytest.fixture(
    scope="module",
    params=[
        ("gpt", True, 18),
        ("gpt", False, 23),
        ("llama", True, 23),
        ("llama", False, 18),
    ],
    ids=lambda item: f"{item[0]}-{'tied' if item[1] else 'untied'}-op{item[2]}",
)
def source(request, tmp_path_factory) -> Path:
    family, tie, opset = request.param
    path = tmp_path_factory.mktemp("source") / "model.onnx"
    export = export_gpt if family == "gpt" else export_llama
    export(path, tie=tie, opset=opset)
    return path


def matrices(path, weights="f32") -> list[tuple[str, bool]]:
    model = kvik.load(path, weights=weights)
    return [(item.weights, item.looked_up) for item in model._core.matrices()]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_same_numbers_as_quantising_at_load(source, weights, tmp_path):
    path = tmp_path / "small.onnx"
    result = quantize_model(source, path, weights=weights)
    at_load = kvik.load(source, weights=weights)
    ids = np.random.default_rng(3).integers(0, at_load.info.vocab_size, 20)
    expected = at_load.logits(ids)
    assert not np.array_equal(expected, kvik.load(source).logits(ids))
    for threads in (1, 2, 3):
        for asked in ("f32", "int8", "int4"):
            stored = kvik.load(path, weights=asked, threads=threads)
            assert stored.info.incremental
            assert np.array_equal(stored.logits(ids), expected), (threads, asked)
    assert np.array_equal(stored.logits(ids, cache=False), expected)
    assert np.array_equal(stored.logits(ids, chunk=3), expected)
    # A tied table is in the file twice by int4: its rows in 8 bits, the projection in 4.
    names = Counter(item.name for item in result.matrices)
    twice = [item for item in result.matrices if names[item.name] == 2 and item.use == "embedding"]
    again = sum(item.shape[0] * item.shape[1] for item in twice)
    assert stored.info.parameters == at_load.info.parameters + again
    assert len(result.matrices) == sum(kept != "f32" for kept, _ in matrices(source, weights))
    assert matrices(path) == matrices(source, weights)

    whole = _core.Model.load(path, incremental=False)
    again = whole.forward([(whole.new_sequence(), ids, _core.Logits.ALL)])
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(path, options)
    feeds = {item.name: np.ones((1, len(ids)), np.int64) for item in session.get_inputs()}
    feeds[next(iter(feeds))] = ids[None]
    theirs = session.run(None, feeds)[0][0]
    # Both round the inputs of layers, if at all, in their own way.
    assert np.abs(theirs - expected).max() <= 0.05 * np.abs(theirs).max()


def test_every_exported_model(model_file, tmp_path):
    """Whatever the exporter and the spelling, the engine finds all of its integers again."""
    done = 0
    for case in POSITIVE:
        path = model_file(case)
        expected = kvik.load(path, weights="int8")
        if all(item.weights == "f32" for item in expected._core.matrices()):
            continue
        quantize_model(path, tmp_path / "small.onnx", weights="int8")
        ids = np.arange(9)
        found = kvik.load(tmp_path / "small.onnx").logits(ids)
        assert np.array_equal(found, expected.logits(ids)), case.name
        done += 1
    assert done > len(POSITIVE) // 2
