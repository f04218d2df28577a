"""From the engine's list of nodes to the boxes and edges of a picture.

A network repeats its layers; drawn out, a picture of it is a mile long and says the same thing
many times. So the longest stretch of nodes that is the same operators several times over becomes
one copy, in a frame that says how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Box", "Picture", "Repeat", "make_picture"]

_LEAST_PERIOD = 3  # a shorter repetition is not a layer of a network


class Node(Protocol):
    """What is needed of kvik._core.GraphNode."""

    @property
    def op(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> list[str]: ...
    @property
    def outputs(self) -> list[str]: ...


@dataclass(frozen=True)
class Box:
    """One box: an operator, or an input or output of the graph."""

    title: str
    subtitle: str
    family: str


@dataclass(frozen=True)
class Repeat:
    """Boxes that stand for `count` copies of themselves, one after the other."""

    boxes: frozenset[int]
    count: int


@dataclass(frozen=True)
class Picture:
    """A graph to draw: edges point forward, from boxes to boxes."""

    boxes: list[Box]
    edges: list[tuple[int, int]]
    repeat: Repeat | None = None
    title: str = ""
    notes: list[str] = field(default_factory=list)


# Families share a colour. What is not listed is "other".
_FAMILIES = {
    "product": "MatMul Gemm MatMulInteger Einsum Conv Linear FusedMatMul",
    "attention": "Attention RowAttention MultiHeadAttention GroupQueryAttention",
    "norm": "LayerNormalization RMSNormalization SimplifiedLayerNormalization Softmax LogSoftmax "
    "BatchNormalization GroupNormalization InstanceNormalization SkipLayerNormalization",
    "element": "Add Sub Mul Div Pow Sqrt Neg Abs Exp Log Erf Tanh Sigmoid Relu Gelu Silu Swish "
    "SiluMul Where Min Max Clip Sin Cos Reciprocal And Or Not Equal Less Greater LessOrEqual "
    "GreaterOrEqual IsNaN Mod BiasGelu FastGelu QuickGelu Softcap",
    "lookup": "Gather GatherND GatherElements Embedding RotaryEmbedding Rotary",
    "shape": "Reshape Transpose Unsqueeze Squeeze Concat Split Slice Expand Shape Cast Range "
    "ConstantOfShape Tile Flatten Identity Pad Trilu CumSum ReduceSum ReduceMean ReduceMax "
    "ReduceMin",
}
_FAMILY_OF = {op: family for family, ops in _FAMILIES.items() for op in ops.split()}


def family_of(op: str) -> str:
    """The family of an operator, whatever its domain."""
    return _FAMILY_OF.get(op.rpartition(".")[2], "other")


def make_picture(
    nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str], title: str = ""
) -> Picture:
    """Boxes for the nodes and for the graph's named inputs and outputs; weights are left out.

    ``nodes`` must be in execution order.
    """
    boxes = [Box(name, "", "input") for name in inputs]
    producer = {name: index for index, name in enumerate(inputs)}
    first_node = len(boxes)
    edges = []
    for node in nodes:
        # In order, since a rewritten graph may use a name again: what counts is the last before.
        edges += [(producer[name], len(boxes)) for name in node.inputs if name in producer]
        producer.update({name: len(boxes) for name in node.outputs if name})
        boxes.append(Box(_short_op(node.op), node.name, family_of(node.op)))
    for name in outputs:
        if name in producer:
            edges.append((producer[name], len(boxes)))
            boxes.append(Box(name, "", "output"))
    found = find_repeat([node.op for node in nodes], _node_edges(edges, first_node, len(nodes)))
    picture = Picture(boxes, sorted(set(edges)), None, title)
    picture = picture if found is None else _fold(picture, first_node, *found)
    return _drop_lonely(picture)


def _short_op(op: str) -> str:
    return op.removeprefix("kvik.").removeprefix("com.microsoft.")


def _node_edges(edges: Sequence[tuple[int, int]], first: int, count: int) -> list[tuple[int, int]]:
    """The edges between operators, counted from the first of them."""
    return [(a - first, b - first) for a, b in edges if a >= first and b < first + count]


def find_repeat(
    ops: Sequence[str], edges: Sequence[tuple[int, int]]
) -> tuple[int, int, int] | None:
    """(start, period, count) of the longest stretch that repeats, or None.

    Of the places where a copy may begin, the one that the fewest values cross: that is where one
    layer of a network hands over to the next.
    """
    codes = np.unique(np.asarray(ops), return_inverse=True)[1] if ops else np.zeros(0, int)
    candidates = []  # (nodes covered, -period, start, run)
    for period in range(_LEAST_PERIOD, len(codes) // 2 + 1):
        start, run = _longest_run(codes[:-period] == codes[period:])
        if run >= period:
            covered = (run + period) // period * period
            candidates.append((covered, -period, start, run))
    crossing = _values_crossing(len(ops), edges)
    for _, negative, start, run in sorted(candidates, reverse=True):
        found = _best_cut(crossing, start, -negative, run)
        if _is_serial(*found, edges):
            return found
    return None


def _best_cut(
    crossing: npt.NDArray[np.int64], start: int, period: int, run: int
) -> tuple[int, int, int]:
    """(start, period, count) with the copies cut where the fewest values cross."""
    count = (run + period) // period
    slack = run + period - count * period

    def cost(offset: int) -> int:
        return int(crossing[start + offset + period])

    offset = min(range(slack + 1), key=cost)
    if count > 2:  # one copy fewer allows every place
        rotated = min(range(period), key=cost)
        if cost(rotated) < cost(offset):
            offset = rotated
    return start + offset, period, (run + period - offset) // period


def _is_serial(start: int, period: int, count: int, edges: Sequence[tuple[int, int]]) -> bool:
    """Whether each copy reads from the one before it: twins side by side are no layers."""
    end = start + period * count
    handed_over = {
        (b - start) // period
        for a, b in edges
        if start <= a < b < end and (b - start) // period == (a - start) // period + 1
    }
    return len(handed_over) == count - 1


def _values_crossing(count: int, edges: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """[count + 1]: of how many nodes before node i something is read at i or after."""
    last_reader: dict[int, int] = {}
    for a, b in edges:
        last_reader[a] = max(last_reader.get(a, a), b)
    crossing = np.zeros(count + 1, np.int64)
    for a, b in last_reader.items():
        crossing[a + 1 : b + 1] += 1
    return crossing


def _longest_run(flags: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """(start, length) of the longest stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    index = int(np.argmax(ends - starts))
    return int(starts[index]), int(ends[index] - starts[index])


def _fold(picture: Picture, first_node: int, start: int, period: int, count: int) -> Picture:
    """The picture with `count` copies of `period` boxes drawn once."""
    begin, end = first_node + start, first_node + start + period * count

    def copy_of(box: int) -> int:
        return (box - begin) // period if begin <= box < end else -1

    def folded(box: int) -> int:
        if box >= end:
            return box - period * (count - 1)
        return begin + (box - begin) % period if box >= begin else box

    edges = {
        (folded(a), folded(b))
        for a, b in picture.edges
        # From one copy to the next: the frame says it.
        if not (copy_of(a) >= 0 and copy_of(b) >= 0 and copy_of(a) != copy_of(b))
    }
    boxes = picture.boxes[: begin + period] + picture.boxes[end:]
    repeat = Repeat(frozenset(range(begin, begin + period)), count)
    return Picture(boxes, sorted(edges), repeat, picture.title, picture.notes)


def _drop_lonely(picture: Picture) -> Picture:
    """Without the inputs that nothing reads."""
    used = {box for edge in picture.edges for box in edge}
    keep = [i for i, box in enumerate(picture.boxes) if i in used or box.family != "input"]
    place = {old: new for new, old in enumerate(keep)}
    repeat = picture.repeat
    if repeat is not None:
        repeat = Repeat(frozenset(place[i] for i in repeat.boxes), repeat.count)
    edges = [(place[a], place[b]) for a, b in picture.edges]
    return Picture([picture.boxes[i] for i in keep], edges, repeat, picture.title, picture.notes)
