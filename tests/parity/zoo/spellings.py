"""One GPT in the spellings that exporters have used over the years, written node by node.

All compute the same kind of function, so that what differs is only how the graph says it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parity.zoo.graph_builder import GraphBuilder
from parity.zoo.registry import CONTEXT, Case, seed_of

VOCAB, WIDTH, HEADS, LAYERS = 97, 32, 4, 2
HEAD_DIM = WIDTH // HEADS


@dataclass(frozen=True)
class Spelling:
    """How each part is written; the names are those of the functions and branches below."""

    opset: int = 18
    mask: str = "buffer"  # see MASKS
    scale: str = "after-div"  # after-div, after-mul, query, both
    product: str = "heads"  # heads, folded (batch and heads as one axis)
    keys: str = "transpose-0231"  # transpose-0231, transpose-again
    qkv: str = "split"  # split, slice, three, gathernd
    linear: str = "matmul"  # matmul, gemm (on rows flattened to two axes)
    norm: str = "op"  # op, decomposed
    gelu: str = "erf"  # erf, tanh, op (opset 20)
    positions: str = "slice"  # slice, range, cumsum, elements, clipped
    culprit: str = ""  # see negative.py


def layer_norm(g: GraphBuilder, x: str, how: str) -> str:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis."""
    weight, bias = g.weight(WIDTH, std=0.1, mean=1.0), g.weight(WIDTH, std=0.1)
    if how == "op":
        return g.node("LayerNormalization", x, weight, bias, epsilon=1e-5)
    mean = g.node("ReduceMean", x, axes=[-1], keepdims=1)
    centred = g.node("Sub", x, mean)
    square = g.node("Pow", centred, g.constant(2.0))
    variance = g.node("ReduceMean", square, axes=[-1], keepdims=1)
    deviation = g.node("Sqrt", g.node("Add", variance, g.constant(1e-5)))
    return g.node("Add", g.node("Mul", g.node("Div", centred, deviation), weight), bias)


def gelu(g: GraphBuilder, x: str, how: str) -> str:
    if how == "op":
        return g.node("Gelu", x)
    if how == "erf":
        inner = g.node("Erf", g.node("Div", x, g.constant(math.sqrt(2))))
        return g.node("Mul", g.node("Mul", x, g.node("Add", inner, g.constant(1))), g.constant(0.5))
    cube = g.node("Mul", g.node("Pow", x, g.constant(3.0)), g.constant(0.044715))
    inner = g.node("Mul", g.node("Add", x, cube), g.constant(math.sqrt(2 / math.pi)))
    gate = g.node("Add", g.node("Tanh", inner), g.constant(1.0))
    return g.node("Mul", g.node("Mul", x, g.constant(0.5)), gate)


def linear(g: GraphBuilder, x: str, inputs: int, outputs: int, how: str) -> str:
    weight, bias = g.weight(inputs, outputs), g.weight(outputs, std=0.1)
    if how == "matmul":
        return g.node("Add", g.node("MatMul", x, weight), bias)
    shape = g.node("Concat", g.size(x, 0), g.size(x, 1), g.ints(outputs), axis=0)
    rows = g.node("Reshape", x, g.ints(-1, inputs))  # [B * S, inputs]
    return g.node("Reshape", g.node("Gemm", rows, weight, bias), shape)


def heads(g: GraphBuilder, x: str, *, permutation: list[int]) -> str:
    """[B, S, C] -> [B, S, H, D], permuted."""
    shape = g.node("Concat", g.size(x, 0), g.size(x, 1), g.ints(HEADS, HEAD_DIM), axis=0)
    return g.node("Transpose", g.node("Reshape", x, shape), perm=permutation)


def positions(g: GraphBuilder, ids: str, how: str) -> str:
    """The rows of a learned table for positions 0 .. S - 1: [S, C] or [1, S, C]."""
    table = g.weight(CONTEXT, WIDTH)
    if how == "slice":
        return g.node("Slice", table, g.ints(0), g.size(ids, 1), g.ints(0))
    if how == "cumsum":  # the running count of ones, minus one: what masks of padding become
        ones = g.node("ConstantOfShape", g.node("Shape", ids), value=_tensor([1], np.int64))
        count = g.node("CumSum", ones, g.constant(1, np.int64))
        return g.node("Gather", table, g.node("Sub", count, g.ints(1)), axis=0)
    length = g.node("Squeeze", g.size(ids, 1), g.ints(0))
    if how == "elements":  # torch.gather: one index for each element
        index = g.node("Unsqueeze", _range(g, length), g.ints(1))
        return g.node("GatherElements", table, g.node("Tile", index, g.ints(1, WIDTH)), axis=0)
    if how == "clipped":  # no longer than the table, said twice
        length = g.node("Min", length, g.constant(CONTEXT, np.int64))
        rows = g.node("Slice", table, g.ints(0), g.size(ids, 1), g.ints(0))
        shape = g.node("Concat", g.node("Unsqueeze", length, g.ints(0)), g.ints(WIDTH), axis=0)
        return g.node("Reshape", rows, shape)
    return g.node("Gather", table, _range(g, length), axis=0)


def _tensor(values: list[float], dtype: type) -> object:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values, dtype=dtype))


def _range(g: GraphBuilder, length: str) -> str:
    return g.node("Range", g.constant(0, np.int64), length, g.constant(1, np.int64))


def _square(g: GraphBuilder, x: str) -> str:
    """The shape [S, S]."""
    length = g.size(x, 1)
    return g.node("Concat", length, length, axis=0)


def _compare(g: GraphBuilder, x: str, op: str, ahead: int = 0) -> str:
    """Boolean [S, S]: j OP i + ahead."""
    index = _range(g, g.node("Squeeze", g.size(x, 1), g.ints(0)))
    row = g.node("Unsqueeze", index, g.ints(1))
    if ahead:
        row = g.node("Add", row, g.ints(ahead))
    return g.node(op, g.node("Unsqueeze", index, g.ints(0)), row)


def masked(g: GraphBuilder, scores: str, x: str, how: str) -> str:
    """The causal mask over scores [B, H, S, S]."""
    low = float(np.finfo(np.float32).min)
    if how == "buffer":  # GPT-2: a stored triangle, cut to the length
        triangle = g.constant(np.tril(np.ones((1, 1, CONTEXT, CONTEXT))), np.bool_)
        length = g.size(x, 1)
        rows = g.node("Slice", triangle, g.ints(0), length, g.ints(2))
        cut = g.node("Slice", rows, g.ints(0), length, g.ints(3))
        return g.node("Where", cut, scores, g.constant(low))
    if how == "buffer-1e4":  # the original GPT-2: w * b - 1e4 * (1 - b)
        triangle = g.constant(np.tril(np.ones((CONTEXT, CONTEXT))))
        cut = g.node("Slice", triangle, g.ints(0, 0), _square(g, x), g.ints(0, 1))
        hidden = g.node("Mul", g.node("Sub", g.constant(1.0), cut), g.constant(-1e4))
        return g.node("Add", g.node("Mul", scores, cut), hidden)
    if how == "trilu-1e9":
        ones = g.node("ConstantOfShape", _square(g, x), value=_tensor([1], np.float32))
        seen = g.node("Trilu", ones, upper=0)
        hidden = g.node("Mul", g.node("Sub", g.constant(1.0), seen), g.constant(-1e9))
        return g.node("Add", scores, hidden)
    if how == "triu-inf":  # torch.triu(torch.full((S, S), -inf), diagonal=1)
        full = g.node("ConstantOfShape", _square(g, x), value=_tensor([-np.inf], np.float32))
        return g.node("Add", scores, g.node("Trilu", full, g.constant(1, np.int64), upper=1))
    if how == "where-not":
        after = g.node("Not", _compare(g, x, "LessOrEqual"))
        return g.node("Where", after, g.constant(-np.inf), scores)
    if how == "where-bias":
        bias = g.node("Where", _compare(g, x, "Greater"), g.constant(low), g.constant(0.0))
        return g.node("Add", scores, bias)
    if how.endswith("from-the-end"):  # a bias that counts from the last key, up to zero
        distance = np.arange(CONTEXT - 1, -1, -1.0)
        bent = distance if how.startswith("alibi") else distance**1.5 / 8
        table = g.constant(-bent * 0.7 ** np.arange(1.0, HEADS + 1)[:, None, None])  # [H, 1, S]
        start = g.node("Max", g.node("Sub", g.ints(CONTEXT), g.size(x, 1)), g.ints(0))
        bias = g.node("Slice", table, start, g.ints(2**62), g.ints(2))
        return masked(g, g.node("Add", scores, bias), x, "where-not")
    if how == "strictly-below":  # the first row sees no key, and averages over all
        seen = _compare(g, x, "Less")
        return g.node("Add", scores, g.node("Where", seen, g.constant(0.0), g.constant(-1e9)))
    if how == "none":
        return scores
    if how == "one-ahead":
        return g.node("Where", _compare(g, x, "LessOrEqual", 1), scores, g.constant(low))
    if how == "last-visible":  # the causal triangle, and the last token for everyone
        last = g.node("Sub", g.size(x, 1), g.ints(1))
        index = _range(g, g.node("Squeeze", g.size(x, 1), g.ints(0)))
        is_last = g.node("Equal", index, last)
        seen = g.node("Or", _compare(g, x, "LessOrEqual"), is_last)
        return g.node("Where", seen, scores, g.constant(low))
    raise ValueError(f"no mask is spelt {how!r}")


def folded_product(g: GraphBuilder, query: str, key: str, x: str, how: str) -> str:
    """Q Kᵀ over [B * H, S, D], with an ALiBi repeated for each sequence."""
    batch, length = g.size(x, 0), g.size(x, 1)
    both = g.node("Mul", batch, g.ints(HEADS))
    q = g.node("Reshape", query, g.node("Concat", both, length, g.ints(HEAD_DIM), axis=0))
    k = g.node("Reshape", key, g.node("Concat", both, g.ints(HEAD_DIM), length, axis=0))
    slopes = g.constant(0.5 ** np.arange(1.0, HEADS + 1)[:, None, None])
    index = _range(g, g.node("Squeeze", length, g.ints(0)))
    bias = g.node("Mul", slopes, g.node("Cast", index, to=1))  # [H, 1, S]
    if how == "folded":
        bias = g.node("Tile", bias, g.node("Concat", batch, g.ints(1, 1), axis=0))
    else:  # heads outermost, where the scores have the batch: slopes depend on the sequence's place
        wide = g.node("Expand", bias, g.node("Concat", g.ints(1), batch, length, axis=0))
        bias = g.node("Reshape", wide, g.node("Concat", both, g.ints(1), length, axis=0))
    scores = g.node("Add", g.node("MatMul", q, k), bias)
    return g.node("Reshape", scores, g.node("Concat", batch, g.ints(HEADS), length, length, axis=0))


def attention(g: GraphBuilder, x: str, s: Spelling) -> str:
    q, k, v = _qkv(g, x, s)
    root = math.sqrt(HEAD_DIM)
    query = heads(g, q, permutation=[0, 2, 1, 3])  # [B, H, S, D]
    value = heads(g, v, permutation=[0, 2, 1, 3])
    if s.keys == "transpose-0231":
        key = heads(g, k, permutation=[0, 2, 3, 1])  # [B, H, D, S]
    else:
        key = g.node("Transpose", heads(g, k, permutation=[0, 2, 1, 3]), perm=[0, 1, 3, 2])
    if s.scale == "query":
        query = g.node("Mul", query, g.constant(1 / root))
    elif s.scale == "both":
        query = g.node("Mul", query, g.constant(1 / math.sqrt(root)))
        key = g.node("Mul", key, g.constant(1 / math.sqrt(root)))
    if s.product == "heads":
        scores = g.node("MatMul", query, key)
    else:
        scores = folded_product(g, query, key, x, s.product)
    if s.scale == "after-div":
        scores = g.node("Div", scores, g.constant(root))
    elif s.scale == "after-mul":
        scores = g.node("Mul", scores, g.constant(1 / root))
    weights = g.node("Softmax", masked(g, scores, x, s.mask), axis=-1)
    mixed = g.node("Transpose", g.node("MatMul", weights, value), perm=[0, 2, 1, 3])
    merged = g.node("Reshape", mixed, g.ints(0, 0, WIDTH))
    return linear(g, merged, WIDTH, WIDTH, s.linear)


def _qkv(g: GraphBuilder, x: str, s: Spelling) -> list[str]:
    if s.qkv == "three":
        return [linear(g, x, WIDTH, WIDTH, s.linear) for _ in range(3)]
    joined = linear(g, x, WIDTH, 3 * WIDTH, s.linear)
    if s.qkv == "split":
        sizes = g.ints(WIDTH, WIDTH, WIDTH)
        parts: list[str] = g.node("Split", joined, sizes, outputs=3, axis=2)
        return parts
    if s.qkv == "gathernd":  # parts picked from an axis of their own, in front
        shape = g.node("Concat", g.size(x, 0), g.size(x, 1), g.ints(3, WIDTH), axis=0)
        front = g.node("Transpose", g.node("Reshape", joined, shape), perm=[2, 0, 1, 3])
        picks = [g.node("GatherND", front, g.constant([[p - 3]], np.int64)) for p in range(3)]
        return [g.node("Squeeze", pick, g.ints(0)) for pick in picks]
    return [
        g.node("Slice", joined, g.ints(part * WIDTH), g.ints((part + 1) * WIDTH), g.ints(-1))
        for part in range(3)
    ]


def build(name: str, s: Spelling, path: Path) -> None:
    from parity.zoo.negative import spoil

    g = GraphBuilder(seed_of(name))
    g.scope = "embedding"
    x = g.node("Gather", g.weight(VOCAB, WIDTH, std=1.0), "ids", axis=0)  # [B, S, C]
    x = g.node("Add", x, positions(g, "ids", s.positions))
    for layer in range(LAYERS):
        g.scope = f"layers.{layer}.attention"
        x = g.node("Add", x, attention(g, layer_norm(g, x, s.norm), s))
        if layer == 0 and s.culprit:
            g.scope = "culprit"
            x = spoil(g, x, s.culprit)
        g.scope = f"layers.{layer}.mlp"
        inner = linear(g, layer_norm(g, x, s.norm), WIDTH, 4 * WIDTH, s.linear)
        x = g.node("Add", x, linear(g, gelu(g, inner, s.gelu), 4 * WIDTH, WIDTH, s.linear))
    g.scope = "head"
    logits = g.node("MatMul", layer_norm(g, x, s.norm), g.weight(WIDTH, VOCAB))
    g.save(path, output=logits, vocab=VOCAB, opset=s.opset)


def case(name: str, spelling: Spelling, *, stop: str = "") -> Case:
    return Case(
        name,
        lambda path: build(name, spelling, path),
        vocab=VOCAB,
        context=CONTEXT,
        incremental=not stop,
        proved=not stop,
        stop=stop,
    )


OLD = Spelling(opset=13, norm="decomposed")  # before LayerNormalization
SPELLINGS = {
    "gpt2-original": replace(OLD, mask="buffer-1e4", gelu="tanh", linear="gemm"),
    "torchscript": replace(OLD, mask="buffer", qkv="split", linear="gemm", gelu="tanh"),
    "trilu-1e9": replace(OLD, opset=14, mask="trilu-1e9", scale="query", qkv="three"),
    "triu-inf": replace(OLD, opset=15, mask="triu-inf", scale="both", keys="transpose-again"),
    "where-not": Spelling(opset=17, mask="where-not", scale="after-mul", qkv="slice"),
    "where-bias": Spelling(opset=17, mask="where-bias", positions="range", linear="gemm"),
    "gelu-op": Spelling(opset=21, mask="where-bias", gelu="op", positions="range", norm="op"),
    "cumsum-positions": Spelling(opset=17, mask="buffer", positions="cumsum"),
    "gathernd-parts": Spelling(opset=17, mask="buffer", qkv="gathernd"),
    "gathered-elements": Spelling(opset=17, mask="where-not", positions="elements"),
    "folded-heads": Spelling(opset=17, mask="where-not", product="folded"),
    "clipped-length": Spelling(opset=17, mask="where-bias", positions="clipped"),
    "alibi-from-the-end": Spelling(opset=17, mask="alibi-from-the-end"),
}


def cases() -> Iterator[Case]:
    for name, spelling in SPELLINGS.items():
        yield case(f"spelling-{name}", spelling)
