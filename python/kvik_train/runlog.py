"""The run's log, one JSON object a line, and the picture of its losses.

A line is either {"event": "train", ...} or {"event": "eval", ...}; both have the step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvik_train.atomic import atomic_write, write_text


class RunLog:
    """Appends to OUT/log.jsonl. A resumed run first drops the lines after its checkpoint."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.path = folder / "log.jsonl"
        kept = [e for e in read_log(self.path) if e["step"] <= resumed_step] if resumed_step else []
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, event: str, step: int, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:  # noqa: PERF203 (a torn last line ends the log)
            break
    return entries


def plot_losses(log: Path, picture: Path) -> None:
    """Draw training and validation loss against the step into a PNG."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    entries = read_log(log)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for event, label, style in (("train", "training", "-"), ("eval", "validation", "o-")):
        points = [(e["step"], e["loss"]) for e in entries if e["event"] == event]
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, style, label=label, markersize=4, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with atomic_write(picture) as file:
        figure.savefig(file, format="png", dpi=120)
