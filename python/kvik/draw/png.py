"""A layout as PNG, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvik.draw.palette import EDGE, FAMILIES, FRAME, PAPER, TEXT, TEXT_SOFT
from kvik.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from kvik.draw.layout import Layout, Placed, Point

__all__ = ["MOST_PIXELS", "PER_INCH", "POINT", "write_png"]

_DPI = 144
PER_INCH = 96  # of the layout's pixels
MOST_PIXELS = 30000  # along one side: what viewers and the renderer still take
POINT = 0.72  # a font size in the layout's pixels, in points


def write_png(layout: Layout, path: Path) -> None:
    """Raises UnsupportedError when matplotlib is missing or the picture is too large for a PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "a PNG needs matplotlib: pip install matplotlib (or write an .svg, which needs nothing)"
        ) from error
    width, height = max(layout.width, 360.0), layout.height + 40
    if max(width, height) * _DPI / PER_INCH > MOST_PIXELS:
        raise UnsupportedError(
            f"the picture is {width:.0f} x {height:.0f}, too large for a PNG: write an .svg, or "
            f"choose --stage rows"
        )
    figure = Figure(figsize=(width / PER_INCH, height / PER_INCH), dpi=_DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim((layout.width - width) / 2, (layout.width + width) / 2)
    axes.set_ylim(height, 0)
    axes.axis("off")
    _draw(layout, axes)
    figure.savefig(path, dpi=_DPI, facecolor=PAPER)


def _draw(layout: Layout, axes: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    left = axes.get_xlim()[0]
    _text(axes, left + 20, 24, layout.title, 14, TEXT, ha="left", weight="bold")
    if layout.frame is not None:
        frame = layout.frame
        axes.add_patch(
            FancyBboxPatch(
                (frame.x + 12, frame.y + 12), frame.width - 24, frame.height - 24,
                boxstyle="round,pad=12,rounding_size=12", facecolor="#f7f9fb", edgecolor=FRAME,
                linestyle=(0, (5, 4)), linewidth=0.8,
            )
        )  # fmt: skip
        _text(axes, frame.x + frame.width + 8, frame.y + 10, frame.label, 15, TEXT_SOFT,
              ha="left", weight="bold")  # fmt: skip
    for edge in layout.edges:
        _draw_edge(axes, edge)
    for box in layout.boxes:
        _draw_box(axes, box)
    _draw_legend(layout, axes, left)


def _text(axes: Any, x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
    style = {"ha": "center", "va": "center"} | style
    # matplotlib takes $ for mathematics, also in a node's name.
    axes.text(x, y, text.replace("$", r"\$"), fontsize=size * POINT, color=color, **style)


def _draw_edge(axes: Any, points: list[Point]) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    (x0, y0), *rest = points
    vertices, codes = [(x0, y0)], [int(Curve.MOVETO)]
    for x1, y1 in rest:
        middle = (y0 + y1) / 2
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [int(Curve.CURVE4)] * 3
        x0, y0 = x1, y1
    arrow = "-|>,head_width=2,head_length=4"
    axes.add_patch(
        FancyArrowPatch(
            path=Curve(vertices, codes), arrowstyle=arrow, edgecolor=EDGE, linewidth=0.9,
            shrinkA=0, shrinkB=0, fill=True, facecolor=EDGE,
        )
    )  # fmt: skip


def _draw_box(axes: Any, box: Placed) -> None:
    from matplotlib.patches import FancyBboxPatch

    shade = FAMILIES[box.family]
    radius = box.height / 2 - 0.01 if box.family in ("input", "output") else 6.0
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2 + radius, box.y - box.height / 2 + radius),
            box.width - 2 * radius, box.height - 2 * radius,
            boxstyle=f"round,pad={radius},rounding_size={radius}", facecolor=shade.fill,
            edgecolor=shade.line, linewidth=0.9,
        )
    )  # fmt: skip
    _text(axes, box.x, box.y if not box.subtitle else box.y - 6, box.title, 12, TEXT)
    if box.subtitle:
        _text(axes, box.x, box.y + 9, box.subtitle, 8.5, TEXT_SOFT)


def _draw_legend(layout: Layout, axes: Any, left: float) -> None:
    from matplotlib.patches import Rectangle

    present = {box.family for box in layout.boxes}
    names = [name for name in FAMILIES if name in present and name not in ("input", "output")]
    per_row = max(1, int((max(layout.width, 360.0) - 40) // 134))
    for i, name in enumerate(names):
        x, y = left + 20 + i % per_row * 134, layout.height - 4 + i // per_row * 18
        shade = FAMILIES[name]
        axes.add_patch(Rectangle((x, y - 6), 12, 12, facecolor=shade.fill, edgecolor=shade.line))
        _text(axes, x + 18, y, shade.label, 10.5, TEXT_SOFT, ha="left")
