"""A score, and the baseline that it is to be read against."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kvik_train.atomic import write_json


@dataclass(frozen=True)
class Score:
    """One measure on held-out data."""

    name: str  # "accuracy", "exact match", "BLEU", ...
    value: float
    baseline: float
    baseline_name: str  # how somebody would answer who knows nothing: "majority class", ...
    count: int  # of held-out items
    unit: str  # what is counted: "texts", "tokens", ...
    kind: Literal["share", "loss", "points"] = "share"  # 0 to 1; nats, less is better; 0 to 100

    def beats_baseline(self) -> bool:
        """Whether it is better than knowing nothing."""
        if self.kind == "loss":
            return self.value < self.baseline
        return self.value > self.baseline

    def describe(self) -> str:
        value, baseline = (self._shown(number) for number in (self.value, self.baseline))
        return f"{self.name} {value} ({self.baseline_name}: {baseline}), {self.count:,} {self.unit}"

    def _shown(self, number: float) -> str:
        if self.kind == "share":
            return f"{100 * number:.1f} %"
        return f"{number:.3f}" if self.kind == "loss" else f"{number:.1f}"


def scores_path(folder: Path) -> Path:
    return folder / "scores.json"


def save_scores(folder: Path, step: int, scores: list[Score]) -> None:
    plain: list[dict[str, Any]] = [asdict(score) for score in scores]
    write_json(scores_path(folder), {"step": step, "scores": plain})
