"""A benchmark as JSON and as tables."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from kvik.bench.measure import Benchmark
    from kvik.info import ModelInfo

__all__ = ["print_report", "to_json"]

# (title, field, factor, digits, the larger the better)
_ROWS = (
    ("load, ms", "load_seconds", 1e3, 1, False),
    ("prefill, tokens/s", "prefill_tokens_per_second", 1.0, 0, True),
    ("first token, ms", "first_token_seconds", 1e3, 2, False),
    ("decode, tokens/s", "decode_tokens_per_second", 1.0, 1, True),
)
_MIB = 1 << 20


def to_json(bench: Benchmark) -> str:
    """Everything that was measured, for programs. Times in seconds, sizes in bytes."""
    info = bench.info
    record: dict[str, Any] = {
        "model": str(bench.plan.model),
        "file_bytes": bench.plan.model.stat().st_size,
        "parameters": info.parameters,
        "packed_bytes": info.packed_bytes,
        "weights": info.weights,
        "cache": info.cache,
        "incremental": info.incremental,
        "isa": info.isa,
        "threads": info.threads,
        "plan": {key: value for key, value in asdict(bench.plan).items() if key != "model"},
        "machine": asdict(bench.machine),
        "roofline": asdict(bench.roofline)
        | {
            "decode_tokens_per_second": bench.roofline.decode_tokens_per_second,
            "prefill_tokens_per_second": bench.roofline.prefill_tokens_per_second,
            "decode_share": _decode_share(bench),
            "prefill_share": _prefill_share(bench),
        },
        "engines": [asdict(engine) for engine in bench.engines],
        "absent": [asdict(item) for item in bench.absent],
        "parity": [asdict(item) | {"same": item.same} for item in bench.parity],
        "correct": bench.correct,
    }
    return json.dumps(record, indent=2)


def print_report(bench: Benchmark, console: Console) -> None:
    """Tables for people."""
    _print_heading(bench, console)
    _print_table(bench, console)
    _print_roofline(bench, console)
    _print_parity(bench, console)


def _print_heading(bench: Benchmark, console: Console) -> None:
    plan, machine, info = bench.plan, bench.machine, bench.info
    console.print(
        f"[bold]{plan.model.name}[/]: {info.parameters:,} parameters, "
        f"weights in {info.weights}, cache in {info.cache}"
    )
    console.print(
        f"{machine.cpu}, {machine.cpus} CPUs, {machine.system}; {info.threads} threads, "
        f"{info.isa} kernels"
    )
    console.print(
        f"{plan.prompt_tokens} prompt tokens, {plan.new_tokens} new tokens, {plan.rounds} rounds, "
        f"engines alternating after a warm-up"
    )
    for engine in bench.engines:
        console.print(f"  {engine.name} {engine.version}: {engine.how}")
    for item in bench.absent:
        console.print(f"  {item.name}: absent, {item.reason}")


def _print_table(bench: Benchmark, console: Console) -> None:
    from rich import box
    from rich.table import Table

    table = Table("", box=box.SIMPLE_HEAD)
    for engine in bench.engines:
        table.add_column(f"{engine.name}\nmin / median / max", justify="right", no_wrap=True)
    if len(bench.engines) > 1:
        table.add_column("kvik is", justify="right", no_wrap=True)
    for title, field, factor, digits, larger in _ROWS:
        samples = [getattr(engine, field) for engine in bench.engines]
        cells = [_spread([value * factor for value in one], digits) for one in samples]
        ratios = [_ratio(samples[0], one, larger) for one in samples[1:]]
        table.add_row(title, *cells, *ratios)
    peaks = [f"{engine.peak_bytes / _MIB:,.0f}" for engine in bench.engines]
    smaller = [
        f"{engine.peak_bytes / bench.engines[0].peak_bytes:.2f}× smaller"
        for engine in bench.engines[1:]
    ]
    table.add_row("peak memory, MiB", *peaks, *smaller)
    console.print(table)


def _print_roofline(bench: Benchmark, console: Console) -> None:
    line, info = bench.roofline, bench.info
    console.print(
        f"decode: {line.bytes_per_token / 1e6:,.2f} MB a token; memory gave up to "
        f"{line.read_bytes_per_second / 1e9:.1f} GB/s for {info.packed_bytes / 1e6:,.1f} MB of "
        f"weights: at most {line.decode_tokens_per_second:,.0f} tokens/s, "
        f"kvik reaches {_decode_share(bench):.0%}"
    )
    console.print(
        f"prefill: {line.flops_per_token / 1e6:,.2f} million operations a token; {info.isa} gives "
        f"{line.flops_per_second / 1e9:,.0f} {_unit(info)}: at most "
        f"{line.prefill_tokens_per_second:,.0f} tokens/s, kvik reaches {_prefill_share(bench):.0%}"
    )


def _print_parity(bench: Benchmark, console: Console) -> None:
    for item in bench.parity:
        error = f"largest difference of the prompt's logits {item.max_logit_error:.1e}"
        if item.first_difference is None:
            console.print(f"the same {item.tokens} greedy tokens as {item.peer}; {error}")
        elif not item.exact:
            console.print(
                f"greedy token {item.first_difference} is another than {item.peer}'s, whose choice "
                f"is {item.margin:.2g} ahead, as low precision may choose; {error}"
            )
        else:
            verdict = "close enough to call equal" if item.same else "[bold red]WRONG[/]"
            console.print(
                f"greedy token {item.first_difference} differs from {item.peer}'s, whose choice "
                f"is {item.margin:.1e} ahead: {verdict}; {error}"
            )


def _unit(info: ModelInfo) -> str:
    return "GOP/s on bytes" if info.weights in ("int8", "int4") else "GFLOP/s in fp32"


def _decode_share(bench: Benchmark) -> float:
    rate = statistics.median(bench.engines[0].decode_tokens_per_second)
    return rate / bench.roofline.decode_tokens_per_second


def _prefill_share(bench: Benchmark) -> float:
    rate = statistics.median(bench.engines[0].prefill_tokens_per_second)
    return rate / bench.roofline.prefill_tokens_per_second


def _spread(values: Sequence[float], digits: int) -> str:
    parts = (min(values), statistics.median(values), max(values))
    # Three figures are enough of anything that a shared machine's clock says.
    return " / ".join(f"{value:,.{digits if value < 100 else 0}f}" for value in parts)


def _ratio(ours: Sequence[float], theirs: Sequence[float], larger_is_better: bool) -> str:
    a, b = statistics.median(ours), statistics.median(theirs)
    ratio = a / b if larger_is_better else b / a
    return f"{ratio:.2f}× faster" if ratio >= 1 else f"{1 / ratio:.2f}× slower"
