"""`kvik bench --profile`: the time of each operator, held against what the machine allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kvik import _core
from kvik.bench.engines import load_generator
from kvik.bench.machine import Ceilings, Machine, describe_machine, measure_ceilings
from kvik.bench.measure import random_prompt
from kvik.profile import OpProfile, Profile, read_profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvik.bench.measure import Plan, Progress
    from kvik.info import ModelInfo

__all__ = ["OpGroup", "Phase", "ProfileRun", "group_ops", "run_profile"]


@dataclass(frozen=True)
class OpGroup:
    """Nodes of the same operator, shape and precision: the same work in every layer."""

    op: str
    shape: str
    precision: str
    nodes: int
    calls: int
    seconds: float
    bytes: float
    operations: float

    def least_seconds(self, ceilings: Ceilings) -> float:
        """What the machine needs for it; 0 where neither bytes nor operations are counted."""
        arithmetic = self.operations / ceilings.peak(self.precision) if self.operations else 0.0
        return max(self.bytes / ceilings.read_bytes_per_second, arithmetic)


@dataclass(frozen=True)
class Phase:
    """Prefill or decode: one call of the engine for each prompt, or for each token."""

    name: str
    tokens: int  # in all calls
    calls: int
    seconds: float  # in all calls
    overhead_seconds: float  # of it, beside the operators
    ops: list[OpGroup]  # the longest first


@dataclass(frozen=True)
class ProfileRun:
    plan: Plan
    machine: Machine
    info: ModelInfo
    ceilings: Ceilings
    phases: list[Phase]


def run_profile(plan: Plan, progress: Progress) -> ProfileRun:
    """Profile kvik alone; the calls are those that generating greedily makes."""
    progress("loading")
    model = load_generator(plan.model, plan.threads, plan.weights, plan.cache)
    prompt = random_prompt(plan, model.info)
    progress("measuring the machine")
    ceilings = measure_ceilings(model.info)
    prefills: list[Profile] = []
    decodes: list[Profile] = []
    for round_index in range(plan.rounds + 1):
        progress(f"round {round_index} of {plan.rounds}" if round_index else "warm-up")
        prefill, decode = _profile_once(model._core, prompt, plan.new_tokens)
        if round_index:
            prefills.append(prefill)
            decodes.append(decode)
    phases = [
        _phase("prefill", plan.prompt_tokens * plan.rounds, prefills),
        _phase("decode", (plan.new_tokens - 1) * plan.rounds, decodes),
    ]
    return ProfileRun(plan, describe_machine(), model.info, ceilings, phases)


def _profile_once(
    core: _core.Model, prompt: np.ndarray[tuple[int, ...], np.dtype[np.int64]], new_tokens: int
) -> tuple[Profile, Profile]:
    """Of one prompt, and of the greedy tokens after the first."""
    sequence = core.new_sequence()
    core.start_profile()
    logits = core.forward([(sequence, prompt, _core.Logits.LAST)])
    prefill = read_profile(core.stop_profile())
    core.start_profile()
    for _ in range(new_tokens - 1):
        token = np.array([logits[0].argmax()], dtype=np.int64)
        logits = core.forward([(sequence, token, _core.Logits.LAST)])
    return prefill, read_profile(core.stop_profile())


def _phase(name: str, tokens: int, profiles: Sequence[Profile]) -> Phase:
    return Phase(
        name=name,
        tokens=tokens,
        calls=sum(profile.calls for profile in profiles),
        seconds=sum(profile.seconds for profile in profiles),
        overhead_seconds=sum(profile.overhead_seconds for profile in profiles),
        ops=group_ops(profiles),
    )


def group_ops(profiles: Sequence[Profile]) -> list[OpGroup]:
    """The operators of profiles of one model, alike ones together, the longest first."""
    groups: dict[tuple[str, str, str], OpGroup] = {}
    for profile in profiles:
        nodes: dict[tuple[str, str, str], int] = {}
        for op in profile.ops:
            key = (op.op, op.shape, op.precision)
            nodes[key] = nodes.get(key, 0) + 1
            groups[key] = _add(groups.get(key, OpGroup(*key, 0, 0, 0.0, 0.0, 0.0)), op)
        for key, count in nodes.items():
            groups[key] = replace(groups[key], nodes=count)
    return sorted(groups.values(), key=lambda group: -group.seconds)


def _add(group: OpGroup, op: OpProfile) -> OpGroup:
    return replace(
        group,
        calls=group.calls + op.calls,
        seconds=group.seconds + op.seconds,
        bytes=group.bytes + op.bytes,
        operations=group.operations + op.operations,
    )
