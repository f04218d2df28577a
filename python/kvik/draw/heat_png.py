"""Panels of attention weights as PNG, drawn by matplotlib."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from kvik.draw.heat import HIDDEN, RAMP, colours, number_shown
from kvik.draw.palette import FRAME, PAPER, TEXT, TEXT_SOFT
from kvik.draw.png import MOST_PIXELS, PER_INCH, POINT
from kvik.errors import UnsupportedError

if TYPE_CHECKING:
    from kvik.draw.heat import HeatPanel, HeatSheet

__all__ = ["render_heat_png"]

_DPI = 168
_LARGE = 12000  # pixels of a side from which a smaller scale does
# For scripts that matplotlib's own font lacks, where the system has one of them.
_FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC",
    "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic",
    "Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS", "FreeSans", "Unifont",
)  # fmt: skip

# How a label stands on its column, by its angle.
_COLUMN_STYLES: dict[int, dict[str, Any]] = {
    0: {"ha": "center"},
    45: {"rotation_mode": "anchor"},
    90: {"ha": "center", "va": "bottom"},
}


def render_heat_png(sheet: HeatSheet) -> bytes:
    """Raises UnsupportedError when matplotlib is missing or the picture is too large for a PNG."""
    try:
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "a PNG needs matplotlib: pip install matplotlib (or write an .svg, which needs nothing)"
        ) from error
    longest = max(sheet.width, sheet.height)
    dpi = _DPI if longest * _DPI / PER_INCH <= _LARGE else PER_INCH
    if longest * dpi / PER_INCH > MOST_PIXELS:
        raise UnsupportedError(
            f"the picture is {sheet.width:.0f} x {sheet.height:.0f}, too large for a PNG: choose a "
            "layer and a head, take a shorter text, or write an .svg"
        )
    figure = Figure(
        figsize=(sheet.width / PER_INCH, sheet.height / PER_INCH), dpi=dpi, facecolor=PAPER
    )
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(sheet.height, 0)
    axes.axis("off")
    there = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in _FONTS if name in there]
    _Painter(axes, fonts).draw(sheet)
    data = io.BytesIO()
    with warnings.catch_warnings():
        # A character that no font has is drawn as a box, which says as much.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(data, dpi=dpi, facecolor=PAPER, format="png")
    return data.getvalue()


class _Painter:
    def __init__(self, axes: Any, fonts: list[str]) -> None:
        self._axes = axes
        self._fonts = fonts

    def draw(self, sheet: HeatSheet) -> None:
        self._text(26, 38, sheet.title, 15, TEXT, weight="bold")
        self._text(26, 57, sheet.subtitle, 11, TEXT_SOFT)
        for panel in sheet.panels:
            self._panel(sheet, panel)
        self._bar(sheet)

    def _text(self, x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
        style = {"ha": "left", "va": "baseline", "family": self._fonts} | style
        self._axes.text(x, y, text, fontsize=size * POINT, color=color, parse_math=False, **style)

    def _image(self, pixels: Any, x: float, y: float, width: float, height: float) -> None:
        from matplotlib.patches import Rectangle

        self._axes.imshow(
            pixels, extent=(x, x + width, y + height, y), interpolation="nearest", aspect="auto",
            zorder=1,
        )  # fmt: skip
        # imshow takes the limits of the axes for its own.
        self._axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=FRAME, linewidth=0.7, zorder=2)
        )

    def _panel(self, sheet: HeatSheet, panel: HeatPanel) -> None:
        right = panel.x + len(sheet.columns) * sheet.cell
        below = panel.y + len(sheet.rows) * sheet.cell
        limits = self._axes.get_xlim(), self._axes.get_ylim()
        self._image(
            colours(panel.weights, sheet.ceiling), panel.x, panel.y,
            len(sheet.columns) * sheet.cell, len(sheet.rows) * sheet.cell,
        )  # fmt: skip
        self._axes.set_xlim(limits[0])
        self._axes.set_ylim(limits[1])
        if panel.title:
            self._text(panel.x, panel.y - sheet.column_room - 8, panel.title, 12, TEXT,
                       weight="bold")  # fmt: skip
        for index, label in enumerate(sheet.rows):
            y = panel.y + (index + 0.5) * sheet.cell
            self._text(panel.x - 5, y, label, sheet.font, TEXT, ha="right", va="center_baseline")
            if sheet.both_sides:
                self._text(right + 5, y, label, sheet.font, TEXT, va="center_baseline")
        for index, label in enumerate(sheet.columns):
            x = panel.x + (index + 0.5) * sheet.cell
            style = {"rotation": sheet.angle} | _COLUMN_STYLES[sheet.angle]
            self._text(x, panel.y - 5, label, sheet.font, TEXT, **style)
            if sheet.both_sides:
                self._text(x, below + 5, label, sheet.font, TEXT, **style | {"va": "top"})
        if sheet.numbers:
            for row, column in np.argwhere(panel.weights >= 0.005):
                shown, colour = number_shown(float(panel.weights[row, column]), sheet.ceiling)
                self._text(
                    panel.x + (column + 0.5) * sheet.cell, panel.y + (row + 0.5) * sheet.cell,
                    shown, 10, colour, ha="center", va="center_baseline",
                )  # fmt: skip

    def _bar(self, sheet: HeatSheet) -> None:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.patches import Rectangle

        bar = sheet.bar
        limits = self._axes.get_xlim(), self._axes.get_ylim()
        ramp = LinearSegmentedColormap.from_list("ramp", RAMP)(np.linspace(0, 1, 256))[None]
        self._image(ramp, bar.x, bar.y, bar.width, bar.height)
        self._axes.set_xlim(limits[0])
        self._axes.set_ylim(limits[1])
        for x, label in bar.ticks:
            self._text(x, bar.y + bar.height + 13, label, 10, TEXT_SOFT, ha="center")
        if sheet.hidden:
            x = bar.x + bar.width + 34
            self._axes.add_patch(
                Rectangle((x, bar.y), bar.height, bar.height, facecolor=HIDDEN, edgecolor=FRAME,
                          linewidth=0.7)
            )  # fmt: skip
            self._text(x + 16, bar.y + bar.height - 1, "exactly 0", 10, TEXT_SOFT)
