"""Tokens as labels: whatever is in them can be seen, and none is long."""

from __future__ import annotations

import unicodedata

__all__ = ["text_units", "visible_label"]

_VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥", "\N{NO-BREAK SPACE}": "⍽"}
_MOST_UNITS = 14  # of a label, in widths of a Latin letter


def visible_label(token: str, most: int = _MOST_UNITS) -> str:
    """The token with its white space and control characters written out, cut at `most` units."""
    shown = [_visible(char) for char in token] or ["∅"]
    if sum(map(text_units, shown)) <= most:
        return "".join(shown)
    kept, units = [], 1  # of the dots
    for piece in shown:
        units += text_units(piece)
        if units > most:
            break
        kept.append(piece)
    return "".join(kept) + "…"


def text_units(text: str) -> int:
    """How wide a text is, roughly: ideographs count two, combining marks nothing."""
    units = 0
    for char in text:
        if unicodedata.combining(char):
            continue
        units += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return units


def _visible(char: str) -> str:
    if char in _VISIBLE:
        return _VISIBLE[char]
    category = unicodedata.category(char)
    if category in ("Zs", "Zl", "Zp"):
        return "·"
    if category in ("Cc", "Cf", "Cs", "Co", "Cn"):
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return char
