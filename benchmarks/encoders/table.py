"""A record as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.encoders.plan import Case
from benchmarks.encoders.results import CaseSamples, Entry, Record
from benchmarks.markdown import (
    engine_name,
    engine_versions,
    groups,
    heading,
    not_measured,
    number,
    section_title,
    table,
)

_HEAD = ("engine", "weights", "ms", "min to max", "kvik ÷ it", "of the ceiling", "outputs")


def to_markdown(record: Record) -> str:
    """A table for each model, thread count and case; below them what is absent or went wrong."""
    lines = heading(
        "Encoders and translation side by side",
        record.machine,
        record.commit,
        "The same seeded random weights for every engine. kvik and one peer at a time take turns, "
        f"{record.plan['rounds']} rounds, each turn after an untimed one; medians. In the column "
        "kvik ÷ it, the engine's median is divided by kvik's in the same rounds: above 1, kvik is "
        "faster. The ceiling is what the products with weights take at the operations per second "
        "that this run measured for kvik's kernels in that precision. Outputs are compared with "
        "those of onnxruntime in f32 on the plain file: errors are relative to the largest output.",
    )
    for model, threads in groups(record.entries):
        entries = [e for e in record.entries if (e.model, e.threads) == (model, threads)]
        lines += _section(record, model, threads, entries)
    lines += engine_versions(record.entries)
    return "\n".join(lines) + "\n"


def _section(record: Record, model: str, threads: int, entries: Sequence[Entry]) -> list[str]:
    lines = section_title(model, threads)
    if model in record.unchecked:
        lines += [f"Outputs were not compared: {record.unchecked[model]}.", ""]
    cases = dict.fromkeys(found.case for entry in entries for found in entry.cases)
    for case in cases:
        rows = []
        for entry in entries:
            found = entry.case(case.name)
            if entry.status in ("ok", "wrong") and found is not None and found.samples:
                rows.append(_row(record, entry, found))
        if rows:
            lines += [f"{_title(case)}:", "", *table(_HEAD, rows)]
    left = [entry for entry in entries if entry.status not in ("ok", "wrong")]
    undone = [(entry, *reason) for entry in entries for reason in entry.reasons()]
    return lines + not_measured(left, undone)


def _title(case: Case) -> str:
    if not case.beams:
        return case.name
    shortest, longest = case.tokens
    return (
        f"{case.name} of {shortest} to {longest} tokens, {case.beams} beams, {case.new_tokens} new "
        "tokens each"
    )


def _row(record: Record, entry: Entry, found: CaseSamples) -> list[str]:
    summary = record.summary(entry, found)
    seconds = summary["seconds"]
    check = entry.checks.get(found.case.name)
    said = check.describe(entry.precision) if check is not None else "not compared"
    if check is not None and entry.precision == "f32" and check.wrong():
        said = f"**WRONG**: {check.wrong()}"
    return [
        engine_name(entry),
        entry.precision,
        number(seconds["median"] * 1e3),
        f"{number(seconds['min'] * 1e3)} to {number(seconds['max'] * 1e3)}",
        f"{summary['kvik_ratio']:.2f}" if "kvik_ratio" in summary else "",
        f"{summary['of_the_ceiling']:.0%}" if "of_the_ceiling" in summary else "–",
        said,
    ]
