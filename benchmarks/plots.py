"""A record as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.entries import roofline_key
from benchmarks.peers import PEERS
from benchmarks.results import (
    CaseSamples,
    Entry,
    Record,
    decode_rate,
    prefill_rate,
    summarize,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people who see colours differently (after Okabe and Ito), kvik the strongest.
_COLOURS = ("#d55e00", "#999999", "#0072b2", "#cc79a7", "#009e73", "#56b4e9", "#e69f00", "#555555")
_MARKERS = ("o", "x", "s", "v", "D", "^", "P", "*")
_ENGINES = ("kvik", *PEERS)
_TITLE_INCHES = 0.6


def draw_all(record: Record, folder: Path) -> list[Path]:
    """The PNG files written: one kind of picture each, for each model that has the samples."""
    made = []
    for model in dict.fromkeys(entry.model for entry in record.entries):
        entries = [e for e in record.entries if e.model == model and e.status in ("ok", "wrong")]
        for name, draw in (
            ("rates", _draw_rates), ("prompt", _draw_prompt), ("scaling", _draw_scaling)
        ):  # fmt: skip
            figure = draw(record, model, entries)
            if figure is not None:
                path = folder / f"{model}-{name}.png"
                figure.savefig(path, dpi=130)
                made.append(path)
    return made


def _figure(
    columns: int, rows: int, width: float, height: float, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Axes in reading order, below a strip of half an inch for the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rest = 1 - _TITLE_INCHES / height
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, rest))
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, list(axes.flat)


def _title(figure: Figure, record: Record, text: str) -> None:
    height = figure.get_figheight()
    figure.text(0.5, 1 - 0.14 / height, text, ha="center", va="top", fontsize=12, weight="bold")
    figure.text(
        0.5, 1 - 0.37 / height,
        f"{record.machine['cpu']}; medians of {record.plan['rounds']} rounds",
        ha="center", va="top", fontsize=8.5, color="#555555",
    )  # fmt: skip


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(visible=True, color="#e5e5e5", linewidth=0.7)
    axis.set_axisbelow(True)


def _colour(engine: str) -> str:
    return _COLOURS[_ENGINES.index(engine) % len(_COLOURS)]


def _marker(engine: str) -> str:
    return _MARKERS[_ENGINES.index(engine) % len(_MARKERS)]


# ---- tokens per second, against the roofline -----------------------------------------------------


def _draw_rates(record: Record, model: str, entries: Sequence[Entry]) -> Figure | None:
    """A row for each precision: bars of the engines, and the ceiling that the run measured."""
    threads = record.plan["threads"][0]
    groups = []
    for precision in record.plan["precisions"]:
        chosen = [
            entry
            for entry in entries
            if (entry.precision, entry.threads) == (precision, threads)
            and entry.cases
            and entry.cases[0].samples
        ]
        if chosen:
            groups.append(chosen)
    if not groups:
        return None
    case = groups[0][0].cases[0].case
    heights = [0.9 + 0.3 * len(group) for group in groups]
    figure, axes = _figure(2, len(groups), 12.5, 1.1 + sum(heights), heights)
    for row, group in enumerate(groups):
        left, right = axes[2 * row : 2 * row + 2]
        _bars(left, record, group, decode_rate, "decode_tokens_per_second")
        _bars(right, record, group, prefill_rate, "prefill_tokens_per_second")
        left.set_ylabel(f"weights in {group[0].precision}", fontsize=10)
        right.set_yticklabels([])
    axes[0].set_title(f"decode, batch {case.batch}", fontsize=10.5)
    axes[1].set_title(f"prefill, {case.prompt_tokens} tokens", fontsize=10.5)
    for axis in axes[-2:]:
        axis.set_xlabel("tokens per second")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center", fontsize=8.5)
    plural = "s" if threads > 1 else ""
    _title(figure, record, f"{model}: tokens per second, {threads} thread{plural}")
    return figure


def _bars(
    axis: Axes, record: Record, rows: Sequence[Entry], rate: Callable[..., float], ceiling: str
) -> None:
    values = [
        statistics.median(rate(row.cases[0].case, sample) for sample in row.cases[0].samples)
        for row in rows
    ]
    places = list(range(len(rows)))
    axis.barh(places, values, color=[_colour(row.engine) for row in rows], height=0.72)
    axis.set_yticks(places, [row.engine for row in rows], fontsize=9)
    axis.invert_yaxis()
    key = roofline_key(rows[0].model, rows[0].precision, rows[0].threads)
    line = record.rooflines.get(key, {}).get(ceiling, 0.0)
    if line > 0:
        axis.axvline(line, color="black", linestyle="--", linewidth=1.4, label="ceiling, same run")
    axis.set_xlim(0, max([*values, line]) * 1.12)
    _plain(axis)
    axis.grid(visible=False, axis="y")
    for place, value in zip(places, values, strict=True):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        axis.annotate(
            text, (value, place), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=8.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


# ---- time to the first token, against the length of the prompt -----------------------------------


def _draw_prompt(record: Record, model: str, entries: Sequence[Entry]) -> Figure | None:
    threads = record.plan["threads"][0]
    panels = []
    for precision in record.plan["precisions"]:
        chosen = [
            (entry, points)
            for entry in entries
            if (entry.precision, entry.threads) == (precision, threads)
            and len(points := _lengths(entry)) > 1
        ]
        if chosen:
            panels.append((precision, chosen))
    if not panels:
        return None
    figure, axes = _figure(len(panels), 1, 1.2 + 4.4 * len(panels), 5.2)
    for axis, (precision, chosen) in zip(axes, panels, strict=True):
        for entry, points in chosen:
            lengths, seconds = zip(*points, strict=True)
            axis.plot(
                lengths, [value * 1e3 for value in seconds], color=_colour(entry.engine),
                marker=_marker(entry.engine), markersize=5, label=entry.engine,
                linewidth=2.4 if entry.engine == "kvik" else 1.4,
            )  # fmt: skip
        key = roofline_key(model, precision, threads)
        if key in record.rooflines:
            rate = record.rooflines[key]["prefill_tokens_per_second"]
            ends = [min(p[0] for _, found in chosen for p in found),
                    max(p[0] for _, found in chosen for p in found)]  # fmt: skip
            axis.plot(ends, [end / rate * 1e3 for end in ends], "k--", linewidth=1.4,
                      label="arithmetic ceiling")  # fmt: skip
        _log2(axis, sorted({p[0] for _, found in chosen for p in found}))
        axis.set_yscale("log")
        axis.set_title(f"weights in {precision}", fontsize=10.5)
        axis.set_xlabel("prompt tokens")
        axis.legend(fontsize=8, framealpha=0.95)
        _plain(axis)
    axes[0].set_ylabel("time to the first token, ms")
    _title(figure, record, f"{model}: time against prompt length")
    return figure


def _lengths(entry: Entry) -> list[tuple[int, float]]:
    """(prompt tokens, median seconds to the first token) of the prefill cases."""
    return [
        (found.case.prompt_tokens, summarize(found)["first_token_seconds"]["median"])
        for found in sorted(entry.cases, key=lambda one: one.case.prompt_tokens)
        if found.samples and found.case.new_tokens == 1
    ]


def _log2(axis: Axes, ticks: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(ticks), [str(tick) for tick in ticks], fontsize=8)
    axis.minorticks_off()


# ---- threads and batches -------------------------------------------------------------------------


def _draw_scaling(record: Record, model: str, entries: Sequence[Entry]) -> Figure | None:
    """Decoded tokens per second with more threads, and with more sequences at once."""
    threads = record.plan["threads"][0]
    counts = sorted({entry.threads for entry in entries})
    panels: list[tuple[str, str, Callable[[Entry], list[tuple[int, float]]]]] = []
    for precision in record.plan["precisions"]:
        if len(counts) > 1:
            panels.append((precision, "threads", lambda one: _by_threads(entries, one)))
        panels.append((precision, "sequences at once", _by_batch))
    drawn = []
    for precision, label, points in panels:
        lines = [
            (entry, found)
            for entry in entries
            if (entry.precision, entry.threads) == (precision, threads)
            and len(found := points(entry)) > 1
        ]
        if lines:
            drawn.append((precision, label, lines))
    if not drawn:
        return None
    columns = min(len(drawn), 4 if len(drawn) > 3 else 3)
    rows = -(-len(drawn) // columns)
    figure, axes = _figure(columns, rows, 1.0 + 3.7 * columns, 1.0 + 3.9 * rows)
    for axis, (precision, label, lines) in zip(axes, drawn, strict=False):
        for entry, found in lines:
            at, rates = zip(*found, strict=True)
            axis.plot(
                at, rates, color=_colour(entry.engine), marker=_marker(entry.engine),
                label=entry.engine, linewidth=2.4 if entry.engine == "kvik" else 1.4,
            )  # fmt: skip
        _log2(axis, sorted({x for _, found in lines for x, _ in found}))
        axis.set_ylim(bottom=0)
        axis.set_title(f"weights in {precision}", fontsize=10.5)
        axis.set_xlabel(label)
        axis.legend(fontsize=7.5, framealpha=0.95)
        _plain(axis)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel("decoded tokens per second, all sequences")
    _title(figure, record, f"{model}: scaling of the decoding")
    return figure


def _by_threads(entries: Sequence[Entry], like: Entry) -> list[tuple[int, float]]:
    return sorted(
        (entry.threads, _median_decode(entry.cases[0]))
        for entry in entries
        if (entry.engine, entry.precision) == (like.engine, like.precision)
        and entry.cases
        and entry.cases[0].samples
    )


def _by_batch(entry: Entry) -> list[tuple[int, float]]:
    return sorted(
        (found.case.batch, _median_decode(found))
        for found in entry.cases
        if found.samples and found.case.new_tokens > 1
    )


def _median_decode(found: CaseSamples) -> float:
    summary: dict[str, Any] = summarize(found)
    rate: float = summary["decode_tokens_per_second"]["median"]
    return rate
