"""Attention maps as panels of cells: which there are, where they lie, what colour a weight has.

A row of a panel is a token that attends, a column one that is attended to. Units are pixels, y
grows downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvik.draw.labels import text_units, visible_label
from kvik.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvik.attention import AttentionMap

__all__ = [
    "HIDDEN",
    "RAMP",
    "Bar",
    "HeatPanel",
    "HeatSheet",
    "Panel",
    "colours",
    "lay_out_heat",
    "number_shown",
    "pick_panels",
]

# From nothing to all: lightness falls evenly, so that it also reads in grey.
RAMP = ("#ffffff", "#fde9d4", "#fbc995", "#f0a055", "#d9772b", "#a94d12", "#6b2b06", "#3a1402")
HIDDEN = "#e9ecf0"  # a key that the query may not see: exactly 0

_FONT = 10.0  # of labels
_UNIT = 0.62 * _FONT  # width of a label's character, rather too much
_LEAST_CELL, _LARGEST_CELL = 12.0, 46.0  # below the least, labels would touch
_PANEL = 330.0  # what a panel of few tokens fills at most
_SLANTED_CELL = 17.0  # from here on column labels may stand at 45 degrees without touching
_FAR = 600.0  # from here on the eye loses its line on the way
_NUMBER_CELL = 34.0  # from here on a cell has room for its number
_MARGIN = 26.0
_HEADER = 66.0  # title, and what rows and columns are
_FOOTER = 58.0  # the scale
_GAP = 26.0  # between panels
_PANEL_TITLE = 20.0
_WIDEST, _HIGHEST = 1500.0, 2200.0  # that all panels together should be, where that is possible
_ASPECT = 1.4
_USUAL = 0.995  # of the weights are below the last colour
_CEILINGS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Panel:
    """A matrix to draw: float32 [queries, keys]."""

    title: str
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeatPanel:
    """A panel with its place: that of its cells."""

    x: float
    y: float
    title: str
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Bar:
    """The scale: where it lies, and its ticks as (x, label)."""

    x: float
    y: float
    width: float
    height: float
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class HeatSheet:
    """A finished drawing."""

    width: float
    height: float
    title: str
    subtitle: str
    panels: list[HeatPanel]
    rows: list[str]  # labels
    columns: list[str]
    cell: float
    font: float
    angle: int  # of column labels: 0, 45, or 90 for those that read upwards
    column_room: float  # above a panel, for them
    both_sides: bool  # labels stand at the right and below, too
    numbers: bool  # cells have room for them
    ceiling: float  # the weight of the last colour, which larger ones have as well
    bar: Bar
    hidden: bool  # some cell is


def pick_panels(
    maps: Sequence[AttentionMap], layer: int | None, head: int | None
) -> tuple[list[Panel], str]:
    """What to draw of the maps of one kind, and its description.

    A layer and a head: that map. A layer: all of its heads. A head: it in all layers. Neither: the
    mean over the heads of each layer.

    Raises:
        InvalidArgumentError: there is no such head, or the weights have none of the layer.
    """
    layers = {
        number: own
        for found in maps for number, own in zip(found.layers, found.weights, strict=True)
        if layer is None or number == layer
    }  # fmt: skip
    if not layers:
        raise InvalidArgumentError(f"there is no layer {layer} among these weights")
    heads = min(len(own) for own in layers.values())
    if head is not None and not 0 <= head < heads:
        which = "have one, head 0" if heads == 1 else f"have {heads}, 0 to {heads - 1}"
        raise InvalidArgumentError(f"there is no head {head}: the model's layers {which}")
    if layer is not None:
        if head is None and heads > 1:
            panels = [Panel(f"head {number}", own) for number, own in enumerate(layers[layer])]
            return panels, f"layer {layer}, all {heads} heads"
        return [Panel("", layers[layer][head or 0])], f"layer {layer}, head {head or 0}"
    if head is not None:
        shown = {number: own[head] for number, own in layers.items()}
        how = f"head {head}"
    else:
        shown = {
            number: own.mean(axis=0, dtype=np.float64).astype(np.float32)
            for number, own in layers.items()
        }
        how = f"mean of {heads} heads" if heads > 1 else "one head"
    if len(shown) == 1:
        return [Panel("", own) for own in shown.values()], f"layer {next(iter(shown))}, {how}"
    return [Panel(f"layer {number}", own) for number, own in shown.items()], f"{how}, every layer"


def lay_out_heat(
    panels: Sequence[Panel], tokens: Sequence[str], keys: Sequence[str], title: str, subtitle: str
) -> HeatSheet:
    """Places for everything. The panels are of the same tokens and keys."""
    rows, columns = [visible_label(t) for t in tokens], [visible_label(k) for k in keys]
    cell = min(_LARGEST_CELL, max(_LEAST_CELL, _PANEL / max(len(rows), len(columns))))
    font = min(_FONT + max(0.0, cell - 16) / 12, 12.0)
    unit = _UNIT * font / _FONT
    widest = max(map(text_units, columns)) * unit
    angle = 0 if widest <= cell else 45 if cell >= _SLANTED_CELL else 90
    row_room = max(map(text_units, rows)) * unit + 8
    slope = math.sqrt(0.5)
    column_room = {0: font + 4, 45: (widest + 6) * slope + font, 90: widest + 10}[angle]
    # What slants beyond the last column.
    overhang = max(
        (index + 0.5) * cell + (text_units(label) * unit + 6) * slope - len(columns) * cell
        for index, label in enumerate(columns)
    ) if angle == 45 else 0.0  # fmt: skip
    titled = _PANEL_TITLE if any(panel.title for panel in panels) else 0.0
    inner_width, inner_height = len(columns) * cell, len(rows) * cell
    both = angle != 45 and max(inner_width, inner_height) > _FAR
    width = (1 + both) * row_room + inner_width + max(0.0, overhang)
    height = titled + (1 + both) * column_room + inner_height
    across = _columns(len(panels), width, height)
    down = -(-len(panels) // across)
    placed = []
    for index, panel in enumerate(panels):
        x = _MARGIN + (index % across) * (width + _GAP) + row_room
        y = _MARGIN + _HEADER + (index // across) * (height + _GAP) + titled + column_room
        placed.append(HeatPanel(x, y, panel.title, panel.weights))
    least = max(
        360.0, 9.8 * text_units(title) + 2 * _MARGIN, 6.6 * text_units(subtitle) + 2 * _MARGIN
    )
    total_width = max(least, 2 * _MARGIN + across * width + (across - 1) * _GAP)
    bottom = _MARGIN + _HEADER + down * height + (down - 1) * _GAP
    ceiling, most = _ceiling(panels)
    return HeatSheet(
        total_width, bottom + _FOOTER, title, subtitle, placed, rows, columns, cell, font, angle,
        column_room, both, cell >= _NUMBER_CELL, ceiling,
        _bar(ceiling, most > ceiling, bottom + 22),
        any(bool((panel.weights == 0).any()) for panel in panels),
    )  # fmt: skip


def colours(weights: npt.NDArray[np.float32], ceiling: float) -> npt.NDArray[np.uint8]:
    """Of each weight, RGB: uint8 [..., 3]. The root of the weight counts: small ones show, too."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMP], np.float64)
    place = np.sqrt(np.clip(weights.astype(np.float64) / ceiling, 0, 1)) * (len(stops) - 1)
    low = np.minimum(place.astype(np.int64), len(stops) - 2)
    part = (place - low)[..., None]
    mixed = stops[low] * (1 - part) + stops[low + 1] * part
    found: npt.NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    found[weights == 0] = [int(HIDDEN[i : i + 2], 16) for i in (1, 3, 5)]
    return found


def number_shown(weight: float, ceiling: float) -> tuple[str, str]:
    """What a cell says of its weight ("" of almost none), in a colour that can be read there."""
    dark = math.sqrt(min(weight / ceiling, 1.0)) > 0.6
    shown = f"{weight:.2f}"
    shown = {"1.00": "1", "0.00": ""}.get(shown, shown.removeprefix("0"))
    return shown, "#ffffff" if dark else "#3a1402"


def _columns(panels: int, width: float, height: float) -> int:
    """Panels side by side: not wider than a screen, unless they would stand in a tower."""
    fit = max(1, int((_WIDEST - 2 * _MARGIN + _GAP) // (width + _GAP)))
    if panels <= min(fit, 4):
        return panels
    across = max(1, round(math.sqrt(_ASPECT * panels * (height + _GAP) / (width + _GAP))))
    if -(-panels // min(across, fit)) * (height + _GAP) < _HIGHEST:
        across = min(across, fit)
    down = -(-panels // min(across, panels))
    return -(-panels // down)  # no line is much shorter than the others


def _ceiling(panels: Sequence[Panel]) -> tuple[float, float]:
    """The weight of the last colour, and the largest there is.

    Of a long text few weights are large, as that of a first token that can see itself alone: a
    scale up to those would leave the rest pale.
    """
    shown = np.concatenate([panel.weights[panel.weights > 0] for panel in panels])
    if not len(shown):
        return 1.0, 1.0
    usual, most = float(np.quantile(shown, _USUAL)), float(shown.max())
    return next((ceiling for ceiling in _CEILINGS if usual <= ceiling), 1.0), most


def _bar(ceiling: float, beyond: bool, y: float) -> Bar:
    width, x = 220.0, _MARGIN
    ticks = [
        (x + width * math.sqrt(part), f"{ceiling * part:.3g}") for part in (0, 0.05, 0.25, 0.5, 1)
    ]
    if beyond:
        ticks[-1] = (ticks[-1][0], f"≥ {ceiling:.3g}")
    return Bar(x, y, width, 10.0, ticks)
