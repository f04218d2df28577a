"""What a run measures."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.plan import PRECISIONS, Turns

__all__ = ["CASES", "MODELS", "PRECISIONS", "Case", "Plan"]


@dataclass(frozen=True)
class Case:
    """Texts or images of one batch; or sentences to be translated, all by as many tokens."""

    name: str
    model: str
    batch: int
    tokens: tuple[int, int] = (0, 0)  # of the shortest and the longest text; of images none
    beams: int = 0  # hypotheses of each sentence; 0: nothing is translated
    new_tokens: int = 0  # of each translation, none of which ends earlier


# The 2017 Transformer's translations are about as long as their sources.
CASES = {
    "bert-base": (
        Case("1×16", "bert-base", 1, (16, 16)),
        Case("1×128", "bert-base", 1, (128, 128)),
        Case("8×128", "bert-base", 8, (128, 128)),
    ),
    "vit-b16": (Case("1 image", "vit-b16", 1), Case("8 images", "vit-b16", 8)),
    "transformer-base": (
        Case("16 sentences", "transformer-base", 16, (20, 40), beams=4, new_tokens=32),
    ),
}
MODELS = tuple(CASES)


@dataclass(frozen=True, kw_only=True)
class Plan(Turns):
    """Everything that decides what is measured and where it goes."""

    cases: tuple[Case, ...]  # of all models

    def of(self, model: str) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.model == model)
