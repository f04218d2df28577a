"""A layout as SVG text."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kvik.draw.palette import EDGE, FAMILIES, FRAME, PAPER, TEXT, TEXT_SOFT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvik.draw.layout import Frame, Layout, Placed, Point

__all__ = ["render_svg"]

_FONT = "font-family=\"Inter, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif\""
_LEGEND_ROW = 18.0
_LEGEND_ITEM = 134.0


def render_svg(layout: Layout) -> str:
    """The picture, with a legend of the families that occur in it."""
    legend = _legend(layout)
    width = max(layout.width, 360.0)
    per_row = max(1, int((width - 40) // _LEGEND_ITEM))
    rows = -(-len(legend) // per_row)
    height = layout.height + rows * _LEGEND_ROW + 16
    shift = (width - layout.width) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.1f} {height:.1f}" {_FONT}>',
        f"<title>{escape(layout.title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0.8 7.5 4 0 7.2z" fill="{EDGE}"/></marker>'
        "</defs>",
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        f'<text x="20" y="28" font-size="14" font-weight="600" fill="{TEXT}">'
        f"{escape(layout.title)}</text>",
        f'<g transform="translate({shift:.1f} 0)">',
        *([_frame(layout.frame)] if layout.frame else []),
        *[_edge(edge) for edge in layout.edges],
        *[_box(box) for box in layout.boxes],
        "</g>",
        *[
            _legend_item(family, 20 + (i % per_row) * _LEGEND_ITEM,
                         layout.height + (i // per_row) * _LEGEND_ROW)
            for i, family in enumerate(legend)
        ],
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _legend(layout: Layout) -> list[str]:
    """The families that occur, inputs and outputs apart: their shape says what they are."""
    present = {box.family for box in layout.boxes}
    return [name for name in FAMILIES if name in present and name not in ("input", "output")]


def _legend_item(family: str, x: float, y: float) -> str:
    shade = FAMILIES[family]
    return (
        f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="12" height="12" rx="3" fill="{shade.fill}" '
        f'stroke="{shade.line}"/><text x="{x + 18:.1f}" y="{y + 1:.1f}" font-size="10.5" '
        f'fill="{TEXT_SOFT}">{escape(shade.label)}</text>'
    )


def _frame(frame: Frame) -> str:
    label_x, label_y = frame.x + frame.width + 8, frame.y + 16
    return (
        f'<rect x="{frame.x:.1f}" y="{frame.y:.1f}" width="{frame.width:.1f}" '
        f'height="{frame.height:.1f}" rx="12" fill="#f7f9fb" stroke="{FRAME}" '
        f'stroke-dasharray="5 4"/><text x="{label_x:.1f}" y="{label_y:.1f}" font-size="15" '
        f'font-weight="600" fill="{TEXT_SOFT}">{escape(frame.label)}</text>'
    )


def _edge(points: Sequence[Point]) -> str:
    """Vertical at every layer, an S-curve between layers."""
    (x0, y0), *rest = points
    path = [f"M{x0:.1f} {y0:.1f}"]
    for x1, y1 in rest:
        if abs(x1 - x0) < 0.05:
            path.append(f"V{y1:.1f}")
        else:
            middle = (y0 + y1) / 2
            path.append(f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}")
        x0, y0 = x1, y1
    line = " ".join(path)
    return (
        f'<path d="{line}" fill="none" stroke="{EDGE}" stroke-width="1.2" marker-end="url(#tip)"/>'
    )


def _box(box: Placed) -> str:
    shade = FAMILIES[box.family]
    x, y = box.x - box.width / 2, box.y - box.height / 2
    radius = box.height / 2 if box.family in ("input", "output") else 6
    title_y = box.y + 4 if not box.subtitle else box.y - 2
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'rx="{radius:.0f}" fill="{shade.fill}" stroke="{shade.line}"/>',
        f'<text x="{box.x:.1f}" y="{title_y:.1f}" font-size="12" font-weight="500" '
        f'text-anchor="middle" fill="{TEXT}">{escape(box.title)}</text>',
    ]
    if box.subtitle:
        parts.append(
            f'<text x="{box.x:.1f}" y="{box.y + 11:.1f}" font-size="8.5" text-anchor="middle" '
            f'fill="{TEXT_SOFT}">{escape(box.subtitle)}</text>'
        )
    return "".join(parts)
