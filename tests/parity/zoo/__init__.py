"""Tiny seeded models in the spellings that exporters emit, each with what is expected of it."""

from __future__ import annotations

from parity.zoo import negative, ours, spellings, transformers_models
from parity.zoo.registry import Case


def all_cases(*, wide: bool = False) -> list[Case]:
    """The cases of a run of the suite; with `wide` also those that only widen the coverage."""
    cases = [
        *ours.cases(),
        *spellings.cases(),
        *negative.cases(),
        *transformers_models.cases(),
    ]
    if wide:
        cases += transformers_models.wide_cases()
    names = [case.name for case in cases]
    assert len(names) == len(set(names)), "two cases have one name"
    return cases
