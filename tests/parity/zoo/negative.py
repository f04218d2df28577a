"""Models whose rows depend on later tokens, on the length or on other sequences.

None of them may be run incrementally. Each differs from a provable model in one place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.zoo.graph_builder import GraphBuilder
from parity.zoo.registry import CONTEXT, Case
from parity.zoo.spellings import WIDTH, Spelling, case

MASKS = ("none", "one-ahead", "last-visible", "bent-from-the-end", "strictly-below")
CULPRITS = (
    "mean-pool", "max-pool", "softmax-over-sequence", "batch-mean", "reversed-cumsum", "flip",
    "shift-left", "length-scale", "positions-from-the-end", "last-token", "transposed-matmul",
    "reshape-mixes-batch", "gathernd-last-token", "elements-from-the-end", "clipped-length",
)  # fmt: skip


def spoil(g: GraphBuilder, x: str, how: str) -> str:
    """x [B, S, C] with something added that a row must not know."""
    length = g.size(x, 1)  # [1]
    if how == "mean-pool":
        extra = g.node("ReduceMean", x, axes=[1], keepdims=1)
    elif how == "max-pool":
        extra = g.node("ReduceMax", x, axes=[1], keepdims=1)
    elif how == "softmax-over-sequence":
        extra = g.node("Softmax", x, axis=1)
    elif how == "batch-mean":
        extra = g.node("ReduceMean", x, axes=[0], keepdims=1)
    elif how == "reversed-cumsum":
        extra = g.node("CumSum", x, g.constant(1, np.int64), reverse=1)
    elif how == "flip":
        extra = g.node("Slice", x, g.ints(-1), g.ints(-(2**62)), g.ints(1), g.ints(-1))
    elif how == "shift-left":  # row i gets row i + 1
        rest = g.node("Slice", x, g.ints(1), length, g.ints(1))
        extra = g.node("Pad", rest, g.ints(0, 0, 0, 0, 1, 0))
    elif how == "length-scale":
        extra = g.node("Div", x, g.node("Cast", length, to=1))
    elif how == "positions-from-the-end":
        table = g.weight(CONTEXT, WIDTH)
        scalar = g.node("Squeeze", length, g.ints(0))
        forward = g.node("Range", g.constant(0, np.int64), scalar, g.constant(1, np.int64))
        backward = g.node("Sub", g.node("Sub", length, g.ints(1)), forward)
        extra = g.node("Gather", table, backward, axis=0)
    elif how == "last-token":
        extra = g.node("Gather", x, g.ints(-1), axis=1)
    elif how == "gathernd-last-token":
        extra = g.node("GatherND", g.node("Transpose", x, perm=[1, 0, 2]), g.ints(-1))
        extra = g.node("Unsqueeze", extra, g.ints(1))
    elif how == "elements-from-the-end":
        scalar = g.node("Squeeze", length, g.ints(0))
        forward = g.node("Range", g.constant(0, np.int64), scalar, g.constant(1, np.int64))
        backward = g.node("Sub", g.node("Sub", length, g.ints(1)), forward)
        index = g.node("Tile", g.node("Unsqueeze", backward, g.ints(1)), g.ints(1, WIDTH))
        extra = g.node("GatherElements", g.weight(CONTEXT, WIDTH), index, axis=0)
    elif how == "clipped-length":  # min(S, 16) is S for short sequences alone
        clipped = g.node("Min", length, g.ints(16))
        extra = g.node("Div", x, g.node("Cast", clipped, to=1))
    elif how == "transposed-matmul":  # x xᵀ x: attention without softmax and without a mask
        scores = g.node("MatMul", x, g.node("Transpose", x, perm=[0, 2, 1]))
        extra = g.node("MatMul", g.node("Mul", scores, g.constant(0.01)), x)
    elif how == "reshape-mixes-batch":  # [B, S, C] read as [S, B, C]
        shape = g.node("Concat", length, g.size(x, 0), g.ints(WIDTH), axis=0)
        swapped = g.node("Transpose", g.node("Reshape", x, shape), perm=[1, 0, 2])
        extra = swapped
    else:
        raise ValueError(f"nothing is spoilt by {how!r}")
    return g.node("Add", x, extra)


def cases() -> Iterator[Case]:
    for mask in MASKS:
        spelling = Spelling(opset=17, mask=mask)
        yield case(f"negative-mask-{mask}", spelling, stop="layers.0.attention")
    by_batch = Spelling(opset=17, mask="where-not", product="folded-by-batch")
    yield case("negative-folded-by-batch", by_batch, stop="layers.0.attention")
    for culprit in CULPRITS:
        yield case(f"negative-{culprit}", Spelling(opset=17, culprit=culprit), stop="culprit")
