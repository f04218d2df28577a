"""Parts of the tables that every benchmark writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.entries import EngineEntry

AnyEntry = EngineEntry[Any, Any]


def heading(title: str, machine: dict[str, Any], commit: str, more: str) -> list[str]:
    """The title, where the figures are from, and how they came about."""
    return [
        f"# {title}",
        "",
        f"{machine['cpu']}, {machine['cpus']} CPUs ({', '.join(machine['flags'])}), "
        f"{machine['system']}, Python {machine['python']}; commit {commit or 'unknown'}.",
        "",
        more,
        "",
    ]


def section_title(model: str, threads: int) -> list[str]:
    return [f"## {model}, {threads} thread{'s' if threads > 1 else ''}", ""]


def groups(entries: Iterable[AnyEntry]) -> list[tuple[str, int]]:
    """Model and thread count of each section, in the order of the run."""
    return list(dict.fromkeys((entry.model, entry.threads) for entry in entries))


def engine_name(entry: AnyEntry) -> str:
    return f"**{entry.engine}**" if entry.engine == "kvik" else entry.engine


def number(value: float) -> str:
    """Three figures: more than that a shared machine's clock does not say."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def not_measured(
    left: Sequence[AnyEntry], cases: Iterable[tuple[AnyEntry, str, str]] = ()
) -> list[str]:
    """Engines that are not in a table, one line for each reason; then single cases.

    Args:
        left: without a row.
        cases: (entry, name of the case, why).
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for entry in left:
        found.setdefault((entry.engine, entry.status, entry.reason), []).append(entry.precision)
    lines = [
        f"- {engine} ({', '.join(precisions)}): {status}: {reason}"
        for (engine, status, reason), precisions in found.items()
    ]
    lines += [
        f"- {entry.engine} ({entry.precision}), {name}: {reason}" for entry, name, reason in cases
    ]
    return ["Not measured:", "", *lines, ""] if lines else []


def engine_versions(entries: Sequence[AnyEntry]) -> list[str]:
    rows: dict[str, list[str]] = {}
    for entry in entries:
        if entry.version:
            isa = f"; {entry.isa} kernels" if entry.isa else ""
            rows.setdefault(entry.engine, [entry.engine, entry.version, entry.setting + isa])
    return ["## Engines", "", *table(["engine", "version", "how it was run"], list(rows.values()))]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Nothing without rows."""
    if not rows:
        return []
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(_cell(c) for c in row)} |" for row in rows), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
