"""A record as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.entries import roofline_key
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
from benchmarks.results import CaseSamples, Entry, Record, summarize

_MIB = 1 << 20


def to_markdown(record: Record) -> str:
    """One table for each model and thread count; below them what is absent or went wrong."""
    lines = heading(
        "Engines side by side",
        record.machine,
        record.commit,
        "The same seeded random weights for every engine. kvik and one peer at a time take turns, "
        f"{record.plan['rounds']} rounds, each turn after an untimed one; medians. In the columns "
        "kvik ÷ it, the median of kvik in the same rounds is divided by the engine's: above 1, "
        "kvik is faster.",
    )
    for model, threads in groups(record.entries):
        entries = [e for e in record.entries if (e.model, e.threads) == (model, threads)]
        lines += _section(record, model, threads, entries)
    lines += engine_versions(record.entries)
    return "\n".join(lines) + "\n"


def _section(record: Record, model: str, threads: int, entries: Sequence[Entry]) -> list[str]:
    lines = section_title(model, threads)
    first = _first_case(entries)
    if first is not None:
        case = first.case
        lines += [
            f"{case.prompt_tokens} prompt tokens, then {case.new_tokens} greedy tokens, batch "
            f"{case.batch}.",
            "",
        ]
    lines += table(
        [
            "engine", "weights", "first token, ms", "prefill, tokens/s", "kvik ÷ it",
            "decode, tokens/s", "kvik ÷ it", "of the ceiling", "load, s", "peak RSS, MiB",
            "disk, MB", "tokens",
        ],
        [_row(record, entry) for entry in entries if entry.status in ("ok", "wrong")],
    )  # fmt: skip
    lines += _other_cases(entries)
    left = [entry for entry in entries if entry.status not in ("ok", "wrong")]
    undone = [
        (entry, found.case.name, found.reason)
        for entry in entries
        for found in entry.cases
        if found.reason and found.case.new_tokens == 1
    ]
    return lines + not_measured(left, undone)


def _first_case(entries: Sequence[Entry]) -> CaseSamples | None:
    return next((found for entry in entries for found in entry.cases[:1]), None)


def _row(record: Record, entry: Entry) -> list[str]:
    name = engine_name(entry)
    found = entry.cases[0] if entry.cases else None
    summary = summarize(found) if found else {}
    if found is None or not found.samples:
        return [name, entry.precision, *["–"] * 9, found.reason if found else ""]
    prefill = summary["prefill_tokens_per_second"]
    decode = summary.get("decode_tokens_per_second", {})
    return [
        name,
        entry.precision,
        number(summary["first_token_seconds"]["median"] * 1e3),
        number(prefill["median"]),
        _ratio(prefill),
        number(decode["median"]) if decode else "–",
        _ratio(decode),
        _share(record, entry, decode),
        number(statistics.median(entry.load_seconds)) if entry.load_seconds else "–",
        f"{entry.peak_bytes / _MIB:,.0f}",
        f"{entry.disk_bytes / 1e6:,.0f}",
        _tokens(entry),
    ]


def _ratio(rate: dict[str, float]) -> str:
    return f"{rate['kvik_ratio']:.2f}" if "kvik_ratio" in rate else ""


def _share(record: Record, entry: Entry, decode: dict[str, float]) -> str:
    line = record.rooflines.get(roofline_key(entry.model, entry.precision, entry.threads))
    if line is None or not decode:
        return "–"
    return f"{decode['median'] / line['decode_tokens_per_second']:.0%}"


def _tokens(entry: Entry) -> str:
    """Agreement with the f32 reference, in a few words."""
    if entry.same_tokens is None:
        return ""
    if entry.status == "wrong":
        return f"**WRONG**: {entry.reason}"
    if entry.same_tokens == entry.compared_tokens:
        return f"the same {entry.compared_tokens} as {entry.reference} f32"
    tie = ", at a tie" if entry.tie else ""
    return f"the first {entry.same_tokens} of {entry.compared_tokens} as {entry.reference} f32{tie}"


def _other_cases(entries: Sequence[Entry]) -> list[str]:
    """Batches: tokens per second of all sequences together."""
    names = list(
        dict.fromkeys(
            found.case.name
            for entry in entries
            for found in entry.cases[1:]
            if found.case.new_tokens > 1
        )
    )
    lines: list[str] = []
    for name in names:
        rows = []
        for entry in entries:
            found = entry.case(name)
            if found is None:
                continue
            summary = summarize(found)
            decode = summary.get("decode_tokens_per_second")
            rows.append(
                [
                    entry.engine,
                    entry.precision,
                    number(decode["median"]) if decode else "–",
                    _ratio(decode or {}),
                    found.reason,
                ]
            )
        if rows:
            lines += [f"{name[0].upper()}{name[1:]}, all sequences together:", ""]
            lines += table(["engine", "weights", "decode, tokens/s", "kvik ÷ it", ""], rows)
    return lines
