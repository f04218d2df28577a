"""Draws what a command prints in a terminal as an SVG picture.

python docs/picture.py docs/demo.svg --last 60 -- kvik demo
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 100  # columns


def output_of(command: list[str]) -> str:
    """What the command writes to a terminal WIDTH columns wide, escape sequences included."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    chunks = []
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux: the other end was closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    if process.wait() != 0:
        sys.exit(f"{command} exited with {process.returncode}")
    return b"".join(chunks).decode(errors="replace")


def settled(text: str) -> list[str]:
    """The lines as they stand at the end: of a progress bar only its last state."""
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        # Rich redraws a live line by going up and clearing it.
        while "\x1b[1A\x1b[2K" in line:
            line = line.replace("\x1b[1A\x1b[2K", "", 1)
            if lines:
                lines.pop()
        line = line.rpartition("\r")[2].rpartition("\x1b[2K")[2]
        lines.append(line.replace("\x1b[?25l", "").replace("\x1b[?25h", ""))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="the .svg file to write")
    parser.add_argument("--last", type=int, default=1000, help="lines to keep")
    parser.add_argument("--title", default="make demo")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    lines = settled(output_of(arguments.command))[-arguments.last :]
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    for line in lines:
        console.print(Text.from_ansi(line))
    console.save_svg(str(arguments.picture), title=arguments.title)


if __name__ == "__main__":
    main()
