"""Checks that the configs of several families share."""

from __future__ import annotations

from kvik_train.errors import TrainError


def check_positive(config: object, *names: str) -> None:
    """Raise a TrainError that names the first of these settings that is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise TrainError(f"{name} is {getattr(config, name)}; it must be at least 1")


def check_heads(n_embd: int, n_head: int) -> None:
    if n_embd % n_head:
        raise TrainError(
            f"n_embd {n_embd} is not a multiple of n_head {n_head}; "
            "every head takes an equal share of the channels"
        )


def check_dropout(dropout: float) -> None:
    if not 0.0 <= dropout < 1.0:
        raise TrainError(f"dropout is {dropout}; it must lie in [0, 1)")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise TrainError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
