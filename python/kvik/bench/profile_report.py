"""A profile as JSON and as tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from kvik.bench.profile import OpGroup, Phase, ProfileRun

__all__ = ["print_profile", "profile_json"]


def profile_json(run: ProfileRun) -> str:
    """Everything that was measured, for programs. Times in seconds, summed over all calls."""
    record: dict[str, Any] = {
        "model": str(run.plan.model),
        "weights": run.info.weights,
        "cache": run.info.cache,
        "isa": run.info.isa,
        "threads": run.info.threads,
        "plan": {key: value for key, value in asdict(run.plan).items() if key != "model"},
        "machine": asdict(run.machine),
        "ceilings": asdict(run.ceilings),
        "phases": [
            asdict(phase)
            | {
                "ops": [
                    asdict(op) | {"least_seconds": op.least_seconds(run.ceilings)}
                    for op in phase.ops
                ]
            }
            for phase in run.phases
        ],
    }
    return json.dumps(record, indent=2)


def print_profile(run: ProfileRun, console: Console) -> None:
    """Tables for people: one for the prefill, one for the decoding."""
    plan, info, ceilings = run.plan, run.info, run.ceilings
    console.print(
        f"[bold]{plan.model.name}[/]: {info.parameters:,} parameters, weights in {info.weights}; "
        f"{run.machine.cpu}, {info.threads} threads, {info.isa} kernels"
    )
    peaks = ", ".join(
        f"{peak / 1e9:,.0f} GOP/s in {name}"
        for name, peak in ceilings.operations_per_second.items()
    )
    console.print(
        f"ceilings: {ceilings.read_bytes_per_second / 1e9:.1f} GB/s for "
        f"{info.packed_bytes / 1e6:,.1f} MB of weights; {peaks}"
    )
    for phase in run.phases:
        _print_phase(run, phase, console)


def _print_phase(run: ProfileRun, phase: Phase, console: Console) -> None:
    from rich import box
    from rich.table import Table

    rate = phase.tokens / phase.seconds
    console.print(
        f"\n[bold]{phase.name}[/]: {phase.tokens // phase.calls} tokens a call, "
        f"{_ms(phase.seconds / phase.calls)} ms a call, {rate:,.0f} tokens/s, {phase.calls} calls"
    )
    table = Table("operator", "shape", "precision", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("calls", "ms/call", "share", "GB/s", "GOP/s", "of ceiling"):
        table.add_column(title, justify="right", no_wrap=True)
    for op in phase.ops:
        table.add_row(*_cells(run, phase, op))
    rest = phase.overhead_seconds
    between = ["between operators", "", "", "", _ms(rest / phase.calls)]
    table.add_row(*between, f"{rest / phase.seconds:.1%}", "", "", "", style="dim")
    least = sum(op.least_seconds(run.ceilings) for op in phase.ops)
    total = ["all", "", "", "", _ms(phase.seconds / phase.calls), "100.0%"]
    table.add_row(
        *total,
        _rate(sum(op.bytes for op in phase.ops), phase.seconds),
        _rate(sum(op.operations for op in phase.ops), phase.seconds),
        f"{least / phase.seconds:.0%}",
        style="bold",
    )
    console.print(table)


def _cells(run: ProfileRun, phase: Phase, op: OpGroup) -> list[str]:
    least = op.least_seconds(run.ceilings)
    return [
        op.op,
        op.shape,
        op.precision,
        str(op.calls),
        _ms(op.seconds / phase.calls),
        f"{op.seconds / phase.seconds:.1%}",
        _rate(op.bytes, op.seconds),
        _rate(op.operations, op.seconds),
        f"{least / op.seconds:.0%}" if least > 0 else "",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def _rate(amount: float, seconds: float) -> str:
    """In thousands of millions a second; empty where nothing was counted."""
    if amount == 0:
        return ""
    rate = amount / seconds / 1e9
    return f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"
