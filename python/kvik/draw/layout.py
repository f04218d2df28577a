"""A layered drawing (Sugiyama, Tagawa and Toda, 1981): every edge points down.

1. Each box gets a layer: one below the lowest of its inputs.
2. An edge that passes layers gets a bend in each of them.
3. Layers are ordered so that few edges cross: sweeps of barycentres.
4. Boxes move sideways towards their neighbours, in the order that they have.

Units are pixels, y grows downwards.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvik.draw.structure import Picture

__all__ = ["Frame", "Layout", "Placed", "lay_out"]

_CHARACTER = 6.3  # width of a title's character at 12 px
_SMALL = 4.6  # of a subtitle's at 9 px
_PADDING = 22.0
_LEAST_WIDTH = 92.0
_HEIGHT = 36.0
_LAYER_GAP = 26.0
_BOX_GAP = 22.0
_BEND_WIDTH = 14.0
_MARGIN = 28.0
_FRAME = 14.0  # between a frame and what it holds
_LABEL = 34.0  # beside a frame, for its label
_HEADER = 30.0  # above the drawing, for the title
_SWEEPS = 12
_MANY_POINTS = 8000  # above this the order is not refined: it would take minutes
_SUBTITLE = 26  # characters

Point = tuple[float, float]


@dataclass(frozen=True)
class Placed:
    """A box with its place: centre and size."""

    x: float
    y: float
    width: float
    height: float
    title: str
    subtitle: str
    family: str


@dataclass(frozen=True)
class Frame:
    """A rectangle around the boxes of a repeated part."""

    x: float  # of its left edge
    y: float  # of its top edge
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Layout:
    """A finished drawing."""

    width: float
    height: float
    title: str
    boxes: list[Placed]
    edges: list[list[Point]]  # each from the foot of a box to the head of another
    frame: Frame | None


def lay_out(picture: Picture) -> Layout:
    """Places for everything in the picture."""
    layers_of = _assign_layers(len(picture.boxes), picture.edges)
    layers, chains = _split_edges(picture, layers_of)
    _order(layers, chains)
    subtitles = [_shorten(box.subtitle) for box in picture.boxes]
    widths = [
        max(_LEAST_WIDTH, len(box.title) * _CHARACTER + _PADDING, len(small) * _SMALL + _PADDING)
        for box, small in zip(picture.boxes, subtitles, strict=True)
    ]
    points = 1 + max((point for layer in layers for point in layer), default=-1)
    widths += [_BEND_WIDTH] * (points - len(widths))
    x = _place(layers, chains, widths)
    y = {point: i * (_HEIGHT + _LAYER_GAP) for i, layer in enumerate(layers) for point in layer}
    return _finish(picture, subtitles, widths, x, y, chains)


def _assign_layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from a source; then sources sink to just above what reads them."""
    layer = [0] * count
    for a, b in sorted(edges, key=lambda edge: edge[1]):  # inputs are numbered before readers
        layer[b] = max(layer[b], layer[a] + 1)
    readers: dict[int, list[int]] = {}
    fed = set()
    for a, b in edges:
        readers.setdefault(a, []).append(b)
        fed.add(b)
    for box in range(count):
        if box not in fed and box in readers:
            layer[box] = max(0, min(layer[b] for b in readers[box]) - 1)
    return layer


def _split_edges(
    picture: Picture, layer_of: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Points by layer, and each edge as a chain of points in consecutive layers.

    Points below len(boxes) are boxes, the others are bends.
    """
    layers: list[list[int]] = [[] for _ in range(max(layer_of, default=-1) + 1)]
    for box, layer in enumerate(layer_of):
        layers[layer].append(box)
    chains = []
    bends = len(picture.boxes)
    for a, b in picture.edges:
        chain = [a]
        for layer in range(layer_of[a] + 1, layer_of[b]):
            layers[layer].append(bends)
            chain.append(bends)
            bends += 1
        chains.append([*chain, b])
    return layers, chains


def _neighbours(
    chains: Sequence[Sequence[int]],
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            above.setdefault(b, []).append(a)
            below.setdefault(a, []).append(b)
    return above, below


def _order(layers: list[list[int]], chains: Sequence[Sequence[int]]) -> None:
    """Sorts each layer by the mean place of its neighbours, down and up in turn; keeps the best."""
    above, below = _neighbours(chains)
    if sum(map(len, layers)) > _MANY_POINTS:
        return
    best = [list(layer) for layer in layers]
    fewest = _crossings(layers, below)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for i in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            fixed = layers[i - 1 if down else i + 1]
            layers[i] = _by_barycentre(layers[i], fixed, above if down else below)
        crossings = _crossings(layers, below)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    layers[:] = best


def _by_barycentre(
    layer: Sequence[int], fixed: Sequence[int], near: dict[int, list[int]]
) -> list[int]:
    """The layer sorted by the mean place of each point's neighbours in the fixed layer."""
    place = {point: k for k, point in enumerate(fixed)}
    keys = [_mean([place[v] for v in near.get(p, [])], k) for k, p in enumerate(layer)]
    return [point for _, point in sorted(zip(keys, layer, strict=True), key=lambda pair: pair[0])]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _crossings(layers: Sequence[Sequence[int]], below: dict[int, list[int]]) -> int:
    """Pairs of edges between neighbouring layers that cross."""
    total = 0
    for upper, lower in itertools.pairwise(layers):
        place = {point: k for k, point in enumerate(lower)}
        ends = [k for point in upper for k in sorted(place[v] for v in below.get(point, []))]
        array = np.asarray(ends)
        total += sum(int((array[:k] > end).sum()) for k, end in enumerate(ends))
    return total


def _place(
    layers: Sequence[Sequence[int]], chains: Sequence[Sequence[int]], widths: Sequence[float]
) -> dict[int, float]:
    """Horizontal centres: towards the neighbours, never closer than the boxes allow."""
    above, below = _neighbours(chains)
    x: dict[int, float] = {}
    for layer in layers:
        left = 0.0
        for point in layer:
            x[point] = left + widths[point] / 2
            left += widths[point] + _BOX_GAP
        shift = (left - _BOX_GAP) / 2
        for point in layer:
            x[point] -= shift
    sweeps = 4 * _SWEEPS if len(x) <= _MANY_POINTS else 2
    for sweep in range(sweeps):
        near = above if sweep % 2 == 0 else below
        order = layers if sweep % 2 == 0 else list(reversed(layers))
        for layer in order:
            wish = [_mean([x[v] for v in near.get(p, [])], x[p]) for p in layer]
            x.update(zip(layer, _spread_out(layer, wish, widths), strict=True))
    return x


def _spread_out(
    layer: Sequence[int], wish: Sequence[float], widths: Sequence[float]
) -> list[float]:
    """The places nearest to the wishes (least squares) that keep the order and the gaps.

    With the gaps subtracted this is isotonic regression, solved by pooling adjacent violators.
    """
    gaps = [0.0]
    for a, b in itertools.pairwise(layer):
        gaps.append(gaps[-1] + (widths[a] + widths[b]) / 2 + _BOX_GAP)
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for value, gap in zip(wish, gaps, strict=True):
        mean, size = value - gap, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean = (mean * size + other * count) / (size + count)
            size += count
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    return [value + gap for value, gap in zip(flat, gaps, strict=True)]


def _finish(
    picture: Picture,
    subtitles: Sequence[str],
    widths: Sequence[float],
    x: dict[int, float],
    y: dict[int, float],
    chains: Sequence[Sequence[int]],
) -> Layout:
    """Moves everything into the positive quadrant and collects it."""
    left = min((x[p] - widths[p] / 2 for p in x), default=0.0) - _MARGIN - _FRAME
    right = max((x[p] + widths[p] / 2 for p in x), default=0.0) + _MARGIN + _FRAME
    if picture.repeat is not None:
        right += _LABEL
    top = -_HEIGHT / 2 - _MARGIN - _HEADER
    bottom = max(y.values(), default=0.0) + _HEIGHT / 2 + _MARGIN
    at = {p: (x[p] - left, y[p] - top) for p in x}
    boxes = [
        Placed(*at[i], widths[i], _HEIGHT, box.title, subtitles[i], box.family)
        for i, box in enumerate(picture.boxes)
    ]
    edges = [_route(chain, at) for chain in chains]
    frame = _frame(picture, boxes, chains, at)
    return Layout(right - left, bottom - top, picture.title, boxes, edges, frame)


def _route(chain: Sequence[int], at: dict[int, Point]) -> list[Point]:
    """From the foot of the first box, straight through the layers between, to the last's head."""
    half = _HEIGHT / 2
    (x0, y0), (x1, y1) = at[chain[0]], at[chain[-1]]
    route = [(x0, y0 + half)]
    for point in chain[1:-1]:
        x, y = at[point]
        route += [(x, y - half), (x, y + half)]
    return [*route, (x1, y1 - half)]


def _frame(
    picture: Picture,
    boxes: Sequence[Placed],
    chains: Sequence[Sequence[int]],
    at: dict[int, Point],
) -> Frame | None:
    """Around the repeated boxes, and around the edges that lead to them on the way."""
    if picture.repeat is None:
        return None
    held = [boxes[i] for i in picture.repeat.boxes]
    top = min(box.y - box.height / 2 for box in held)
    bottom = max(box.y + box.height / 2 for box in held)
    sides = [box.x - box.width / 2 for box in held] + [box.x + box.width / 2 for box in held]
    for chain in chains:
        if chain[-1] in picture.repeat.boxes:
            sides += [at[point][0] for point in chain[1:-1] if at[point][1] > top]
    left, right = min(sides) - _FRAME, max(sides) + _FRAME
    top, bottom = top - _FRAME * 0.75, bottom + _FRAME * 0.75
    return Frame(left, top, right - left, bottom - top, f"× {picture.repeat.count}")


def _shorten(text: str) -> str:
    """The end of a long name: exporters put what tells nodes apart there."""
    return text if len(text) <= _SUBTITLE else "…" + text[-(_SUBTITLE - 1) :]
