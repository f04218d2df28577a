"""What the benchmarks' command lines have in common: their options, and how they end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.entries import EngineRecord
from benchmarks.rounds import Rounds


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


def run_and_report(runner: Rounds[Any, Any, Any], write: Callable[[], Path]) -> int:
    """Runs, writes and prints what was measured, also of a run that was interrupted.

    Args:
        runner: with a run() of its own.
        write: the record; returns the page that is printed.

    Returns:
        The exit status: 130 where it was interrupted, 1 where an engine was wrong, else 0.
    """
    interrupted = False
    try:
        runner.run()
    except KeyboardInterrupt:
        interrupted = True
    print(write().read_text())
    if interrupted:
        return 130
    return int(any(entry.status == "wrong" for entry in runner.record.entries))


def write_json(record: EngineRecord[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record.to_json(), indent=1, default=str) + "\n")
