"""What the benchmarks' command lines have in common: their options, and how they end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.entries import EngineRecord


def add_names(
    parser: argparse.ArgumentParser, option: str, choices: Sequence[str], default: str
) -> None:
    """An option that takes some of `choices`, separated by commas; each counts once."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(part.strip() for part in text.split(","))
        for name in found:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(choices)}")
        return tuple(dict.fromkeys(found))

    parser.add_argument(
        option,
        type=names,
        metavar="NAME[,NAME...]",
        help=f"of {', '.join(choices)} (default: {default})",
    )


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(count(part.strip()) for part in text.split(",")))


def run_to_end(run: Callable[[], None]) -> bool:
    """Whether it was not interrupted: what was measured until then is to be written."""
    try:
        run()
    except KeyboardInterrupt:
        return False
    return True


def write_json(record: EngineRecord[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record.to_json(), indent=1, default=str) + "\n")
