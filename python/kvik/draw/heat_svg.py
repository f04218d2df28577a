"""Panels of attention weights as SVG text."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape
from typing import TYPE_CHECKING

from kvik.draw.heat import HIDDEN, RAMP, colours, number_shown
from kvik.draw.palette import FRAME, PAPER, TEXT, TEXT_SOFT

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kvik.draw.heat import HeatPanel, HeatSheet

__all__ = ["render_heat_svg"]

_FONT = "font-family=\"Inter, 'Segoe UI', 'Helvetica Neue', 'Noto Sans', Arial, sans-serif\""


def render_heat_svg(sheet: HeatSheet) -> str:
    """The picture. A panel's cells are one image of a pixel each, so that the file stays small."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sheet.width:.0f}" '
        f'height="{sheet.height:.0f}" viewBox="0 0 {sheet.width:.1f} {sheet.height:.1f}" {_FONT}>',
        f"<title>{_text(sheet.title)}</title>",
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        f'<text x="26" y="38" font-size="15" font-weight="600" fill="{TEXT}">'
        f"{_text(sheet.title)}</text>",
        f'<text x="26" y="57" font-size="11" fill="{TEXT_SOFT}">{_text(sheet.subtitle)}</text>',
        *[_panel(sheet, panel) for panel in sheet.panels],
        _bar(sheet),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(sheet: HeatSheet, panel: HeatPanel) -> str:
    width, height = len(sheet.columns) * sheet.cell, len(sheet.rows) * sheet.cell
    sides = 2 if sheet.both_sides else 1
    picture = base64.b64encode(_png(colours(panel.weights, sheet.ceiling))).decode("ascii")
    place = f'x="{panel.x:.1f}" y="{panel.y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    parts = [
        f'<image {place} preserveAspectRatio="none" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{picture}"/>',
        f'<rect {place} fill="none" stroke="{FRAME}"/>',
    ]
    if panel.title:
        parts.append(
            f'<text x="{panel.x:.1f}" y="{panel.y - sheet.column_room - 8:.1f}" font-size="12" '
            f'font-weight="600" fill="{TEXT}">{_text(panel.title)}</text>'
        )
    for index, label in enumerate(sheet.rows):
        y = panel.y + (index + 0.5) * sheet.cell + sheet.font * 0.35
        for x, anchor in ((panel.x - 5, "end"), (panel.x + width + 5, "start"))[:sides]:
            parts.append(
                f'<text x="{x:.1f}" y="{y:.1f}" font-size="{sheet.font:.1f}" '
                f'text-anchor="{anchor}" fill="{TEXT}">{_text(label)}</text>'
            )
    for index, label in enumerate(sheet.columns):
        x = panel.x + (index + 0.5) * sheet.cell + (sheet.font * 0.35 if sheet.angle == 90 else 0)
        below = panel.y + height + (sheet.font + 2 if sheet.angle == 0 else 5)
        anchors = ("middle", "middle") if sheet.angle == 0 else ("start", "end")
        for y, anchor in zip((panel.y - 5, below)[:sides], anchors, strict=False):
            parts.append(
                f'<text transform="translate({x:.1f} {y:.1f}) rotate({-sheet.angle})" '
                f'font-size="{sheet.font:.1f}" text-anchor="{anchor}" fill="{TEXT}">'
                f"{_text(label)}</text>"
            )
    if sheet.numbers:
        for row, line in enumerate(panel.weights):
            for column, weight in enumerate(line):
                shown, colour = number_shown(float(weight), sheet.ceiling)
                if shown:
                    x, y = panel.x + (column + 0.5) * sheet.cell, panel.y + (row + 0.5) * sheet.cell
                    parts.append(
                        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" font-size="10" text-anchor="middle" '
                        f'fill="{colour}">{shown}</text>'
                    )
    return "\n".join(parts)


def _bar(sheet: HeatSheet) -> str:
    bar = sheet.bar
    stops = "".join(
        f'<stop offset="{index / (len(RAMP) - 1):.4f}" stop-color="{colour}"/>'
        for index, colour in enumerate(RAMP)
    )
    parts = [
        f'<defs><linearGradient id="ramp">{stops}</linearGradient></defs>'
        f'<rect x="{bar.x}" y="{bar.y:.1f}" width="{bar.width}" height="{bar.height}" '
        f'fill="url(#ramp)" stroke="{FRAME}"/>'
    ]
    for x, label in bar.ticks:
        parts.append(
            f'<text x="{x:.1f}" y="{bar.y + bar.height + 13:.1f}" font-size="10" '
            f'text-anchor="middle" fill="{TEXT_SOFT}">{label}</text>'
        )
    if sheet.hidden:
        x = bar.x + bar.width + 34
        parts.append(
            f'<rect x="{x:.1f}" y="{bar.y:.1f}" width="{bar.height}" height="{bar.height}" '
            f'fill="{HIDDEN}" stroke="{FRAME}"/><text x="{x + 16:.1f}" '
            f'y="{bar.y + bar.height - 1:.1f}" font-size="10" fill="{TEXT_SOFT}">exactly 0</text>'
        )
    return "\n".join(parts)


def _text(text: str) -> str:
    """Escaped, without what XML cannot hold."""
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
                          for char in text))  # fmt: skip


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A picture of 8-bit RGB [height, width, 3]."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )
