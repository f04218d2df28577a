"""Recurrent models run incrementally: language models, and an encoder-decoder with attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.export.families import (
    CONTEXT,
    MODELS,
    Exported,
    logits_in_pieces,
    target_logits,
    unequal_pairs,
)
from torch import Tensor, nn

import kvik
from kvik import _core
from kvik_export.engines import onnxruntime_session
from kvik_export.quantize import quantize_model
from kvik_train.models.rnn import RNNConfig
from kvik_train.models.seq2seq import Seq2SeqConfig

CELLS = ["lstm", "gru", "rnn"]
SEQ2SEQ = ("seq2seq", "translate", None)
WEIGHTS = ["f32", "bf16", "int8", "int4"]


def as_it_stands(path: Path, threads: int = 1, weights: str = "f32") -> _core.Model:
    """Every operator over the whole sequence, by the general executor."""
    return _core.Model.load(str(path), threads=threads, weights=weights, incremental=False)


def logits_of(core: _core.Model, texts: list[np.ndarray], step: int) -> list[np.ndarray]:
    """Logits [tokens, vocab] of each text, all fed together in pieces of `step` tokens."""
    return logits_in_pieces(core, [core.new_sequence() for _ in texts], texts, step)


def random_texts(vocab: int = 300) -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.integers(0, vocab, size) for size in (70, 1, 33, 64, 65)]


def check_against_onnxruntime(path: Path, texts: list[np.ndarray]) -> None:
    session = onnxruntime_session(str(path))
    (name,) = [item.name for item in session.get_inputs()]
    core = kvik.load(path, threads=2, task="generate")._core
    for text, own in zip(texts, logits_of(core, texts, 100), strict=True):
        (expected,) = session.run(None, {name: text[None]})[:1]
        assert np.abs(own - expected[0]).max() < 1e-5 * max(1, np.abs(expected).max())


def check_bits(path: Path, texts: list[np.ndarray], weights: str = "f32") -> None:
    """Any pieces, company and threads, and the operators as they stand, give the same bits."""
    expected = [logits_of(as_it_stands(path, 1, weights), [text], 100)[0] for text in texts]
    for threads, max_rows in ((1, 256), (3, 7)):
        core = _core.Model.load(str(path), threads=threads, weights=weights, max_rows=max_rows)
        assert core.info.incremental, core.explain()
        for step in (1, 9, 100):
            together = logits_of(core, texts, step)
            for own, whole in zip(together, expected, strict=True):
                assert own.tobytes() == whole.tobytes(), (threads, step)


# ---- language models -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", CELLS)
def test_language_models_are_incremental(files, family):
    path = files[family, "lm", None]
    model = kvik.load(path)
    assert model.info.incremental
    assert f"{family.upper()} of 12 units, goes on from the state" in model.explain()
    layers, parts = (1 if family == "gru" else 2), (2 if family == "lstm" else 1)
    assert model.info.state_bytes_per_position == layers * parts * 12 * 4
    check_against_onnxruntime(path, random_texts())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", CELLS)
def test_language_models_give_the_same_bits_however_they_are_run(files, family, weights):
    check_bits(files[family, "lm", None], random_texts(), weights)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LSTM that is large enough for its matrices to be kept in low precision."""
    torch.manual_seed(1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(200, 64)
            self.recurrent = nn.LSTM(64, 96, 2, batch_first=True)
            self.head = nn.Linear(96, 200)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.recurrent(self.embedding(ids))[0])  # type: ignore[no-any-return]

    path = tmp_path_factory.mktemp("wide") / "model.onnx"
    return legacy_export(Model(), path)


def legacy_export(model: nn.Module, path: Path) -> Path:
    """By the exporter that writes out initial states."""
    ids = torch.zeros((2, 3), dtype=torch.int64)
    torch.onnx.export(
        model.eval(), (ids,), str(path), dynamo=False, input_names=["ids"],
        output_names=["logits"], dynamic_axes={"ids": {0: "batch", 1: "sequence"}},
    )  # fmt: skip
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_low_precision_of_matrices_that_have_it(wide, weights):
    texts = random_texts(200)
    check_bits(wide, texts, weights)
    exact = logits_of(kvik.load(wide)._core, texts[:1], 100)[0]
    rounded = logits_of(kvik.load(wide, weights=weights)._core, texts[:1], 100)[0]
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert error == 0 if weights == "f32" else 0 < error < 0.2
    if weights == "f32":
        check_against_onnxruntime(wide, texts)


@pytest.fixture
def wide_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """The families with layers that are large enough for integers."""
    sizes = {cell: RNNConfig(cell, 300, 9, n_layer=2, n_embd=48, n_hidden=80) for cell in CELLS}
    sizes["seq2seq"] = Seq2SeqConfig(300, CONTEXT, n_layer=2, n_embd=48, n_hidden=64)
    for family, config in sizes.items():
        monkeypatch.setitem(MODELS, family, config)
    return Exported(lambda: tmp_path)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("family", [*CELLS, "seq2seq"])
def test_quantised_files(wide_files, family, weights, tmp_path):
    """What `kvik train` and `kvik export` make: the numbers are those of quantising at load."""
    path = wide_files[SEQ2SEQ if family == "seq2seq" else (family, "lm", None)]
    result = quantize_model(path, tmp_path / "small.onnx", weights=weights)
    uses = [item.use for item in result.matrices]
    # W and R of two layers; but for the first W of the simple RNN, which is too small.
    assert uses.count("recurrent layer") == {"rnn": 3, "seq2seq": 8}.get(family, 4)
    assert not any("read by" in item.reason for item in result.kept)
    at_load, stored = kvik.load(path, weights=weights), kvik.load(tmp_path / "small.onnx")
    if family == "seq2seq":
        pairs = unequal_pairs()
        expected, found = (target_logits(model, pairs, step=5) for model in (at_load, stored))
    else:
        texts = random_texts()
        expected, found = (logits_of(model._core, texts, 9) for model in (at_load, stored))
    assert stored.info.incremental
    for own, other in zip(found, expected, strict=True):
        assert own.tobytes() == other.tobytes()
    onnxruntime_session(str(tmp_path / "small.onnx"))  # it takes the file


@pytest.mark.parametrize("family", CELLS)
def test_generation(files, family):
    path = files[family, "lm", None]
    model = kvik.load(path, threads=2)
    session = onnxruntime_session(str(path))
    prompts = [model.tokenizer.encode(text) for text in ("one two", "three", "four five one two")]
    together = model.generate(prompts, max_new_tokens=12)
    for prompt, found in zip(prompts, together, strict=True):
        assert found
        ids = list(prompt)
        for token in found:
            (logits,) = session.run(None, {session.get_inputs()[0].name: np.array([ids])})
            # Rounding may order two tokens that are all but equal.
            assert logits[0, -1, token] > logits[0, -1].max() - 1e-4
            ids.append(token)
    settings = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    single = kvik.load(path, threads=1)
    sampled = model.generate(prompts, **settings)
    assert single.generate(prompts[0], **settings) == sampled[0]
    assert model.generate("one two", **settings) == single.generate("one two", **settings)
    score = model.score("four five one")
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.array([score.ids])})
    expected = torch.from_numpy(logits[0, :-1]).double().log_softmax(1)
    expected = expected[torch.arange(len(score.ids) - 1), torch.tensor(score.ids[1:])]
    assert np.abs(score.logprobs[1:] - expected.numpy()).max() < 1e-4
    assert single.score(score.ids).total == score.total


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("cache", ["f32", "int8"])
def test_forks_and_truncation(files, family, cache):
    core = kvik.load(files[family, "lm", None], threads=1, cache=cache)._core
    text = random_texts()[0]
    expected = logits_of(core, [text], 100)[0]
    one = core.new_sequence()
    core.forward([(one, text[:40], _core.Logits.NONE)])
    other = one.fork()
    core.forward([(one, text[:7], _core.Logits.NONE)])
    rest = core.forward([(other, text[40:], _core.Logits.ALL)])
    assert rest.tobytes() == expected[40:].tobytes()
    for length in (40, 1, 0):
        one.truncate(length)
        rest = core.forward([(one, text[length:], _core.Logits.ALL)])
        assert rest.tobytes() == expected[length:].tobytes()


# ---- what the operators define -------------------------------------------------------------------

UNITS, INPUTS, VOCAB = 5, 6, 40
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def operator_model(
    path: Path, op: str, *, directions: int = 1, learned: bool = False, peepholes: bool = False,
    lengths: bool = False, **attributes,
) -> Path:  # fmt: skip
    """ids [batch, sequence] -> logits, by one recurrent operator."""
    random, gates = np.random.default_rng(2), GATES[op]
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        values = random.uniform(-0.7, 0.7, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def ints(name: str, *values: int) -> str:
        weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    batch_first = attributes.get("layout") == 1
    states = 2 if op == "LSTM" else 1
    nodes = [helper.make_node("Gather", [weight("embedding", VOCAB, INPUTS), "ids"], ["x"])]
    if not batch_first:
        nodes.append(helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]))
    nodes += [
        helper.make_node("Shape", ["ids"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["ids"], ["length"], start=1, end=2),
    ]
    inputs = [
        "x" if batch_first else "steps",
        weight("W", directions, gates * UNITS, INPUTS),
        weight("R", directions, gates * UNITS, UNITS),
        weight("B", directions, 2 * gates * UNITS),
        "", "", "", "",
    ]  # fmt: skip
    if lengths:
        nodes += [
            helper.make_node("Expand", ["length", "batch"], ["all"]),
            helper.make_node("Cast", ["all"], ["lengths"], to=TensorProto.INT32),
        ]
        inputs[4] = "lengths"
    if learned:
        before = (
            ["batch", ints("one", directions)]
            if batch_first
            else [ints("one", directions), "batch"]
        )
        nodes.append(helper.make_node("Concat", [*before, ints("units", UNITS)], ["state"], axis=0))
        for part in range(states):
            shape = (1, directions, UNITS) if batch_first else (directions, 1, UNITS)
            first = weight(f"first{part}", *shape)
            nodes.append(helper.make_node("Expand", [first, "state"], [f"state{part}"]))
            inputs[5 + part] = f"state{part}"
    if peepholes:
        inputs[7] = weight("P", directions, 3 * UNITS)
    while not inputs[-1]:
        inputs.pop()
    nodes.append(
        helper.make_node(op, inputs, ["y"], name="recurrent", hidden_size=UNITS, **attributes)
    )
    if not batch_first:
        nodes.append(helper.make_node("Transpose", ["y"], ["texts"], perm=[2, 0, 1, 3]))
    nodes += [
        helper.make_node(
            "Reshape", ["y" if batch_first else "texts", ints("flat", 0, 0, -1)], ["h"]
        ),
        helper.make_node("MatMul", ["h", weight("head", directions * UNITS, VOCAB)], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "recurrent",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB])],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


VARIANTS = {
    "lstm": ("LSTM", {}),
    "peepholes": ("LSTM", {"peepholes": True}),
    "learned states": ("LSTM", {"learned": True}),
    "lengths": ("LSTM", {"lengths": True}),
    "clip": ("LSTM", {"clip": 0.3}),
    "coupled": ("LSTM", {"input_forget": 1}),
    "other activations": ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"]}),
    "gru": ("GRU", {"learned": True}),
    "gru, linear first": ("GRU", {"linear_before_reset": 1, "learned": True}),
    "gru, clip": ("GRU", {"clip": 0.2}),
    "gru, other activations": (
        "GRU",
        {"activations": ["Sigmoid", "ScaledTanh"], "activation_alpha": [0.7],
         "activation_beta": [1.1]},
    ),
    "rnn": ("RNN", {"learned": True}),
    "rnn, relu": ("RNN", {"activations": ["Relu"], "clip": 2.0}),
    "lstm, batch first": ("LSTM", {"layout": 1, "learned": True}),
    "gru, batch first": ("GRU", {"layout": 1, "lengths": True}),
    "rnn, batch first": ("RNN", {"layout": 1}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_operators_define(variant, tmp_path):
    op, attributes = VARIANTS[variant]
    path = operator_model(tmp_path / "model.onnx", op, **attributes)
    texts = random_texts(VOCAB)
    check_bits(path, texts)
    # onnxruntime has no layout = 1, clips what it feeds the functions at other places than the
    # definition says, and couples gates in its own way.
    if not {"layout", "clip", "input_forget"} & set(attributes):
        check_against_onnxruntime(path, texts)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_other_directions_are_not_incremental(op, direction, tmp_path):
    path = operator_model(
        tmp_path / "model.onnx", op, directions=1 + (direction == "bidirectional"),
        direction=direction, learned=True,
    )  # fmt: skip
    model = kvik.load(path, threads=2, task="generate")
    assert not model.info.incremental
    why = f"{op} node 'recurrent' is {direction}: its state comes from later tokens"
    assert why in model.explain()
    assert "by sequence" in model.explain()
    # Still right: whole sequences by rows, and each token anew where one token follows another.
    texts = random_texts(VOCAB)
    check_against_onnxruntime(path, texts)
    whole = as_it_stands(path)
    for text, own in zip(texts, logits_of(model._core, texts, 100), strict=True):
        assert own.tobytes() == logits_of(whole, [text], 100)[0].tobytes()


# ---- two sequences -------------------------------------------------------------------------------


def test_a_source_is_computed_once_and_its_state_begins_the_target(files):
    path, pairs = files[SEQ2SEQ], unequal_pairs()
    model = kvik.load(path, threads=2, max_rows=16)
    assert model.info.incremental, model.explain()
    assert "the source alone" in model.explain()
    assert model.explain().count("begins with a state of the source") == 2
    assert "as the graph stands" not in model.explain()
    feeds = {
        name: np.zeros((len(pairs), CONTEXT), np.int64)
        for name in ("source_ids", "source_mask", "target_ids")
    }
    for row, (source, target) in enumerate(pairs):
        feeds["source_ids"][row, : len(source)] = source
        feeds["source_mask"][row, : len(source)] = 1
        feeds["target_ids"][row, : len(target)] = target
    (expected,) = onnxruntime_session(str(path)).run(["logits"], feeds)
    for own, padded in zip(target_logits(model, pairs, step=CONTEXT), expected, strict=True):
        assert np.abs(own - padded[: len(own)]).max() < 1e-5 * max(1, np.abs(padded).max())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_recurrent_target_has_the_same_bits_in_any_pieces_and_company(files, weights):
    pairs = unequal_pairs()
    model = kvik.load(files[SEQ2SEQ], threads=3, weights=weights)
    together = target_logits(model, pairs, step=CONTEXT)
    single = kvik.load(files[SEQ2SEQ], threads=1, weights=weights)
    for pair, own in zip(pairs, together, strict=True):
        for step in (1, 4):
            assert target_logits(single, [pair], step=step)[0].tobytes() == own.tobytes()


def test_forks_share_a_recurrent_source(files):
    core = kvik.load(files[SEQ2SEQ], threads=1)._core
    (one,) = core.new_sequences([np.array([5, 6, 7])])
    other = one.fork()
    core.forward([(one, np.array([1, 8, 3]), _core.Logits.NONE)])
    one.truncate(0)
    expected = target_logits(
        kvik.load(files[SEQ2SEQ], threads=1), [(np.array([5, 6, 7]), np.array([1, 8, 9]))], step=3
    )[0]
    begun_anew = core.forward([(one, np.array([1, 8, 9]), _core.Logits.ALL)])
    del one
    assert begun_anew.tobytes() == expected.tobytes()
    assert core.forward([(other, np.array([1, 8, 9]), _core.Logits.ALL)]).tobytes() == (
        expected.tobytes()
    )


def test_recurrent_translations(files):
    path = files[SEQ2SEQ]
    model = kvik.load(path, threads=2)
    texts = ["one two", "three", "four five"]
    best = model.translate(texts, n_best=3, beams=5)
    assert [len(found) for found in best] == [3, 3, 3]
    assert [found[0].text for found in best] == model.translate(texts, beams=5)
    for text, found in zip(texts, best, strict=True):
        assert model.translate(text, n_best=3, beams=5) == found
    session = onnxruntime_session(str(path))
    for text in texts:
        greedy = model.translate(text, beams=1, n_best=1, max_new_tokens=8)[0]
        ids, tokens = model.tokenizer.encode(text), [1]
        for token in greedy.ids:
            feeds = {"source_ids": np.array([ids]), "source_mask": np.ones((1, len(ids)), np.int64),
                     "target_ids": np.array([tokens])}  # fmt: skip
            (logits,) = session.run(["logits"], feeds)
            assert logits[0, -1, token] > logits[0, -1].max() - 1e-4
            tokens.append(token)


class BothDirections(nn.Module):
    """A source that is read in both directions, whose last states begin the target."""

    def __init__(self, cell: type[nn.RNNBase], keys: bool) -> None:
        super().__init__()
        self.source = nn.Embedding(50, 8)
        self.target = nn.Embedding(50, 8)
        self.encoder = cell(8, 6, bidirectional=True, batch_first=True)
        self.decoder = cell(8, 12, batch_first=True)
        self.head = nn.Linear(24 if keys else 12, 50)
        self.keys = keys

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(source_ids))
        both = [torch.cat((part[0], part[1]), 1)[None]
                for part in (last if isinstance(last, tuple) else (last,))]  # fmt: skip
        y, _ = self.decoder(self.target(target_ids), tuple(both) if len(both) == 2 else both[0])
        if self.keys:
            scores = (y @ memory.transpose(1, 2)).softmax(2)
            y = torch.cat((y, scores @ memory), 2)
        return self.head(y)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_a_source_that_is_none_of_rows_is_computed_as_it_stands(cell, keys, tmp_path):
    torch.manual_seed(4)
    path = tmp_path / "model.onnx"
    ids = torch.zeros((1, 3), dtype=torch.int64)
    torch.onnx.export(
        BothDirections(cell, keys).eval(), (ids, ids), str(path), dynamo=False,
        input_names=["source_ids", "target_ids"], output_names=["logits"],
        dynamic_axes={"source_ids": {0: "batch", 1: "source"},
                      "target_ids": {0: "batch", 1: "target"}},
    )  # fmt: skip
    model = kvik.load(path, threads=2)
    assert model.info.incremental, model.explain()
    assert "each source is computed by itself, as the graph stands" in model.explain()
    session = onnxruntime_session(str(path))
    pairs = [(source % 50, target % 50) for source, target in unequal_pairs()]
    together = target_logits(model, pairs, step=CONTEXT)
    for (source, target), own in zip(pairs, together, strict=True):
        (expected,) = session.run(None, {"source_ids": source[None], "target_ids": target[None]})
        assert np.abs(own - expected[0]).max() < 1e-5
    single = kvik.load(path, threads=1)
    for pair, own in zip(pairs, together, strict=True):
        assert target_logits(single, [pair], step=1)[0].tobytes() == own.tobytes()
    with pytest.raises(kvik.InvalidArgumentError, match="token id 50"):
        model._core.new_sequences([np.array([50])])
