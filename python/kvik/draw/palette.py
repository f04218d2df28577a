"""Colours of the families of operators, the same in every renderer."""

from __future__ import annotations

__all__ = ["EDGE", "FAMILIES", "FRAME", "PAPER", "TEXT", "TEXT_SOFT", "Shade"]

from typing import NamedTuple


class Shade(NamedTuple):
    """Fill and outline of a box, and what the legend calls its family."""

    fill: str
    line: str
    label: str


PAPER = "#ffffff"
TEXT = "#1b1f24"
TEXT_SOFT = "#66707c"
EDGE = "#8b949e"
FRAME = "#b6bec8"

FAMILIES = {
    "input": Shade("#ffffff", "#1b1f24", "input, output"),
    "output": Shade("#ffffff", "#1b1f24", "input, output"),
    "product": Shade("#d7e8fb", "#3b7dc4", "matrix product"),
    "attention": Shade("#fde3cc", "#d9772b", "attention"),
    "norm": Shade("#d9f0dc", "#3f9a52", "normalisation"),
    "element": Shade("#fbf3c8", "#b99a1f", "element-wise"),
    "lookup": Shade("#e8dcf7", "#8457c2", "lookup, position"),
    "shape": Shade("#eceff2", "#8b949e", "shape, data movement"),
    "other": Shade("#f9dce4", "#c24a6f", "other"),
}
