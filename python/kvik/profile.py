"""Where the time of a model or session goes, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvik import _core

__all__ = ["OpProfile", "Profile"]


@dataclass(frozen=True)
class OpProfile:
    """One node of the graph that runs, and the sum over its calls.

    ``bytes`` and ``operations`` are what the algorithm must do at least, not what a counter saw;
    they are zero for an operator that neither reads weights or cached keys and values nor
    multiplies matrices.
    """

    op: str  # "kvik.Linear"
    name: str  # as in the file
    shape: str  # "768 x 2304", inputs by outputs; "" where the operator has none
    precision: str  # of what it multiplies: "int8"; "" where it multiplies nothing
    calls: int
    seconds: float  # threads that wait for one another included
    bytes: float  # of weights, and of cached keys and values, read
    operations: float  # of matrix products; a multiply-add counts two


@dataclass(frozen=True)
class Profile:
    """Where the time of some calls went."""

    calls: int  # of the engine: one for each prefill, one for each decoded token
    seconds: float  # in them
    ops: list[OpProfile]  # in the order of the graph; those that were called

    @property
    def overhead_seconds(self) -> float:
        """What the calls took beside their operators: bookkeeping, gathering rows.

        Not meaningful for a session that several threads run at once.
        """
        return self.seconds - sum(op.seconds for op in self.ops)


def read_profile(core: _core.Profile) -> Profile:
    """The engine's record as a plain one."""
    ops = [
        OpProfile(
            op.op, op.name, op.shape, op.precision, op.calls, op.seconds, op.bytes, op.operations
        )
        for op in core.ops
    ]
    return Profile(core.calls, core.seconds, ops)
