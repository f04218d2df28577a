"""A tiny decoder with a tokenizer of its own, made on the fly."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

VOCAB, CONTEXT, WIDTH, HEADS = 258, 64, 16, 2


def make_decoder(context=CONTEXT, layers=2, seed=0, metadata=None):
    """Pre-norm decoder: ids [batch, sequence] -> logits [batch, sequence, VOCAB].

    Positions come from Range(0, sequence), attention is the standard operator, the projection
    to the vocabulary is the embedding's transpose.
    """
    rng = np.random.default_rng(seed)
    nodes, weights = [], []

    def weight(name, *shape, scale=0.5):
        array = (rng.standard_normal(shape) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(name, array):
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attributes))
        return output

    def norm(x, name):
        scale = constant(f"{name}.scale", np.ones(WIDTH, np.float32))
        return node("LayerNormalization", [x, scale], name, axis=-1)

    node("Gather", [weight("embedding", VOCAB, WIDTH), "input_ids"], "tokens_embedded")
    node("Shape", ["input_ids"], "length", start=1, end=2)
    node("Squeeze", ["length", constant("axis0", np.array([0]))], "length_scalar")
    zero, one = constant("zero", np.array(0)), constant("one", np.array(1))
    node("Range", [zero, "length_scalar", one], "positions_range")
    node("Gather", [weight("positions", context, WIDTH), "positions_range"], "positions_embedded")
    x = node("Add", ["tokens_embedded", "positions_embedded"], "x0")
    for i in range(layers):
        h = norm(x, f"layer{i}.norm1")
        for part in "qkv":
            node("MatMul", [h, weight(f"layer{i}.w{part}", WIDTH, WIDTH)], f"layer{i}.{part}")
        qkv = [f"layer{i}.{part}" for part in "qkv"]
        heads = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "is_causal": 1}
        a = node("Attention", qkv, f"layer{i}.attention", **heads)
        a = node("MatMul", [a, weight(f"layer{i}.wo", WIDTH, WIDTH)], f"layer{i}.projected")
        x = node("Add", [x, a], f"layer{i}.residual1")
        h = norm(x, f"layer{i}.norm2")
        h = node("MatMul", [h, weight(f"layer{i}.up", WIDTH, 4 * WIDTH)], f"layer{i}.hidden")
        h = node("Gelu", [h], f"layer{i}.gelu")
        h = node("MatMul", [h, weight(f"layer{i}.down", 4 * WIDTH, WIDTH)], f"layer{i}.mlp")
        x = node("Add", [x, h], f"layer{i}.residual2")
    x = norm(x, "final_norm")
    node("MatMul", [x, weight("head", WIDTH, VOCAB)], "logits")

    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB]
    )
    graph = helper.make_graph(nodes, "decoder", [ids], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return model


def make_tokenizer():
    """Byte-level tokens without merges, and <|endoftext|>: ids 0 to 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def plain_path(tmp_path_factory):
    """The decoder without a tokenizer."""
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    onnx.save(make_decoder(), path)
    return path


@pytest.fixture(scope="session")
def text_path(tmp_path_factory, tokenizer):
    """The decoder with its tokenizer and end-of-text id in the metadata."""
    metadata = {"kvik.tokenizer": tokenizer.to_str(), "kvik.eos_token_ids": json.dumps([256])}
    path = tmp_path_factory.mktemp("text") / "text.onnx"
    onnx.save(make_decoder(metadata=metadata), path)
    return path


@pytest.fixture(scope="session")
def long_path(tmp_path_factory, tokenizer):
    """A context of 200,000 positions: a generation that lasts until somebody stops it."""
    metadata = {"kvik.tokenizer": tokenizer.to_str()}
    path = tmp_path_factory.mktemp("long") / "long.onnx"
    onnx.save(make_decoder(context=200_000, metadata=metadata), path)
    return path


@pytest.fixture(scope="session")
def session_path(tmp_path_factory):
    """y = x @ w + 1 and n = number of rows, for float32 x [rows, 3]."""
    w = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    one = numpy_helper.from_array(np.float32(1), "one")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "one"], ["y"]),
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2]),
        helper.make_tensor_value_info("n", TensorProto.INT64, [1]),
    ]
    graph = helper.make_graph(nodes, "affine", [x], outputs, [w, one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path_factory.mktemp("session") / "affine.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def plain(plain_path):
    import kvik

    return kvik.load(plain_path, threads=2)


@pytest.fixture(scope="session")
def text(text_path):
    import kvik

    return kvik.load(text_path, threads=2)
