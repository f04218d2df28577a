"""`kvik inspect`: what is in a file, what became of it, and what was proved."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvik.cli.common import ModelPath, Threads, check_model_path
from kvik.errors import FileError, InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from rich.console import Console

    from kvik import _core
    from kvik.info import ModelInfo
    from kvik.model import Model

__all__ = ["inspect"]


class Stage(str, Enum):
    """A graph on its way from the file to the plan."""

    imported = "imported"
    optimized = "optimized"
    rows = "rows"


def inspect(
    model: ModelPath,
    graph: Annotated[
        Path | None, typer.Option(help="Write a picture of the graph: .svg or .png.")
    ] = None,
    stage: Annotated[
        Stage | None,
        typer.Option(show_default="the one that runs", help="Which graph --graph and --dump show."),
    ] = None,
    dump: Annotated[bool, typer.Option("--dump", help="List every node instead.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON record instead.")] = False,
    threads: Threads = None,
) -> None:
    """Show inputs, outputs, size, memory, operators before and after fusion, and the proof."""
    from rich.console import Console

    from kvik.loading import load

    if graph is not None and graph.suffix not in (".svg", ".png"):
        raise InvalidArgumentError(f"--graph writes .svg or .png; found {str(graph)!r}")
    path = check_model_path(model)
    console = Console(highlight=False, soft_wrap=True)
    try:
        loaded = load(path, threads=threads)
    except UnsupportedError as error:
        if graph is not None or dump or json:
            raise
        _print_plain_graph(path, threads, console, error)
        return
    chosen = _stage(loaded, stage)
    if graph is not None:
        _write_picture(loaded, chosen, graph, path.name)
        console.print(f"wrote {graph}")
    elif dump:
        print(loaded._core.dump(chosen), end="")
    elif json:
        print(json_format.dumps(_record(loaded, path), indent=2))
    else:
        _print_model(loaded, path, console)


def _stage(model: Model, wanted: Stage | None) -> _core.GraphStage:
    from kvik import _core

    if wanted is None:
        wanted = Stage.rows if model.info.incremental else Stage.optimized
    if wanted is Stage.rows and not model.info.incremental:
        raise InvalidArgumentError(
            "there is no graph of rows: the model was not proved incremental (--stage optimized)"
        )
    stages = {
        Stage.imported: _core.GraphStage.IMPORTED,
        Stage.optimized: _core.GraphStage.OPTIMIZED,
        Stage.rows: _core.GraphStage.ROWS,
    }
    return stages[wanted]


def _record(model: Model, path: Path) -> dict[str, Any]:
    info = asdict(model.info)
    del info["metadata"]
    return {
        "model": str(path),
        "file_bytes": path.stat().st_size,
        **info,
        "provenance": model.info.provenance,
        "explain": model.explain().splitlines(),
    }


def _print_model(model: Model, path: Path, console: Console) -> None:
    from rich.markup import escape

    info = model.info
    opsets = ", ".join(f"{domain or 'onnx'} {version}" for domain, version in info.opsets.items())
    console.print(f"[bold]{escape(path.name)}[/]  {escape(info.producer)}, opset {escape(opsets)}")
    for key, value in info.provenance.items():
        console.print(f"  {escape(key)}: {escape(value[:200])}", style="dim")
    _print_values("inputs", [str(item) for item in info.inputs], console)
    _print_values("outputs", [str(item) for item in info.outputs], console)
    context = "no limit" if info.context_length is None else f"{info.context_length} positions"
    tokenizer = "none" if model.tokenizer is None else f"from {model.tokenizer.source}"
    _print_values(
        "size",
        [
            f"{info.parameters:,} parameters, {_size(info.weight_bytes)} in the file",
            f"{model._core.info.encoded[0][1]:,} labels"
            if model.task == "classify_image"
            else f"vocabulary of {info.vocab_size:,}, context: {context}, tokenizer: {tokenizer}",
        ],
        console,
    )
    _print_values(
        "memory",
        [
            f"{_size(info.packed_bytes)} packed weights for {info.isa}",
            f"{_size(info.activation_bytes)} activations",
            _state_of_a_token(info),
        ],
        console,
    )
    _print_ops(info, console)
    heading = "incremental: proved" if info.incremental else "not incremental"
    if model.task == "classify_image":
        heading = "images"
    _print_values(heading, model.explain().splitlines(), console)


def _state_of_a_token(info: ModelInfo) -> str:
    """What a sequence keeps of each token."""
    states = info.recurrent_bytes_per_position
    parts = [f"{_size(info.state_bytes_per_position - states)} keys and values"]
    if states:
        parts = parts if info.state_bytes_per_position > states else []
        parts.append(f"{_size(states)} states of recurrent layers")
    return f"{' and '.join(parts)} for each token of a sequence"


def _print_values(heading: str, lines: list[str], console: Console) -> None:
    from rich.markup import escape

    console.print(f"\n[bold]{escape(heading)}[/]")
    for line in lines:
        console.print(f"  {escape(line)}")


def _print_ops(info: ModelInfo, console: Console) -> None:
    """Operators of the file beside those that run."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("operators")
    table.add_column("in the file", justify="right")
    table.add_column("as run", justify="right")
    names = sorted(
        {*info.ops_before, *info.ops_after},
        key=lambda op: (-info.ops_after.get(op, 0), -info.ops_before.get(op, 0), op),
    )
    for op in names:
        before, after = info.ops_before.get(op, 0), info.ops_after.get(op, 0)
        table.add_row(escape(op), str(before or ""), str(after or ""))
    table.add_section()
    table.add_row("all", f"{sum(info.ops_before.values()):,}", f"{sum(info.ops_after.values()):,}")
    console.print(table)


def _print_plain_graph(
    path: Path, threads: int | None, console: Console, reason: UnsupportedError
) -> None:
    """A graph that is no language model, but that a session can run."""
    from kvik.session import InferenceSession

    session = InferenceSession(path, threads)
    console.print(f"[bold]{path.name}[/]  runs with kvik.InferenceSession")
    for heading, args in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        _print_values(heading, [f"{arg.name}: {arg.type} {arg.shape}" for arg in args], console)
    _print_values("no language model", [str(reason)], console)


def _write_picture(model: Model, stage: _core.GraphStage, path: Path, name: str) -> None:
    from kvik.draw.layout import lay_out
    from kvik.draw.structure import make_picture

    nodes = model._core.nodes(stage)
    inputs, outputs = _graph_ends(model, stage, nodes)
    layout = lay_out(make_picture(nodes, inputs, outputs, f"{name}, {stage.name.lower()}"))
    if not path.parent.is_dir():
        raise FileError(f"can't write {path}: there is no folder {path.parent}")
    try:
        if path.suffix == ".svg":
            from kvik.draw.svg import render_svg

            path.write_text(render_svg(layout), encoding="utf-8")
        else:
            from kvik.draw.png import write_png

            write_png(layout, path)
    except OSError as error:
        raise FileError(f"can't write {path}: {error.strerror}") from error


def _graph_ends(
    model: Model, stage: _core.GraphStage, nodes: list[_core.GraphNode]
) -> tuple[list[str], list[str]]:
    """Names of the graph's inputs and outputs as its nodes spell them."""
    from kvik import _core

    read = {name for node in nodes for name in node.inputs}
    made = [name for node in nodes for name in node.outputs if name]
    inputs = [item.name for item in model.info.inputs]
    if stage == _core.GraphStage.ROWS:
        inputs.append("positions")  # each row's position, which the proof made an input
    unread = [name for name in made if name not in read]
    named = [item.name for item in model.info.outputs if item.name in made]
    return [name for name in dict.fromkeys(inputs) if name in read], named or unread[-1:]


def _size(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
