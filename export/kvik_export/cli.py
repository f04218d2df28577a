"""`kvik export`, `kvik verify`, `kvik quantize`. Importing this loads neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from kvik_export.quantize import QuantizeResult
    from kvik_export.verify import Verification


ExternalData = Annotated[
    bool | None,
    typer.Option(
        "--external-data/--inline",
        help="Weights in a file beside the model. By default only when they exceed 2 GiB.",
    ),
]


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a training run, or checkpoint.pt.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")] = Path(
        "model.onnx"
    ),
    task: Annotated[
        str | None, typer.Option(help="embed: a BERT's vectors. By default what it learnt.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 23.")] = 23,
    external_data: ExternalData = None,
) -> None:
    """Export the plain forward pass of a trained model to ONNX."""
    from rich.console import Console

    from kvik_export.exporter import export_checkpoint

    with Console(stderr=True).status(f"exporting {checkpoint}"):
        result = export_checkpoint(
            checkpoint, output, task=task, opset=opset, external_data=external_data
        )
    typer.echo(result.summary())


def verify(
    model: Annotated[Path, typer.Argument(help="The .onnx file.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", "-c", help="The training run, to compare with torch too."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Greedy tokens to compare.")] = 256,
    length: Annotated[int, typer.Option(help="Tokens of each prompt at most.")] = 48,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of each engine."),
    ] = None,
) -> None:
    """Check that torch, onnxruntime and kvik compute the same. Exit status 1 if they do not."""
    from rich.console import Console

    from kvik_export.verify import verify_model
    from kvik_export.verify_plain import is_generator, verify_plain

    with Console(stderr=True).status("loading") as status:
        if is_generator(model):
            result = verify_model(
                model, checkpoint=checkpoint, greedy_steps=steps, length=length, threads=threads,
                on_step=status.update,
            )  # fmt: skip
        else:
            result = verify_plain(
                model, checkpoint=checkpoint, length=length, threads=threads,
                on_step=status.update,
            )  # fmt: skip
    report(result)
    raise typer.Exit(0 if result.ok else 1)


def quantize(
    model: Annotated[Path, typer.Argument(help="The .onnx file, with float32 weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    weights: Annotated[str, typer.Option("--weights", "-w", help="int8 or int4.")],
    external_data: ExternalData = None,
) -> None:
    """Store a model's weights as integers, in standard ONNX.

    Loading the new file gives exactly the numbers of loading the old one with the same --weights.
    """
    from rich.console import Console

    from kvik.cli.common import check_model_path
    from kvik_export.errors import ExportError
    from kvik_export.quantize import quantize_model

    if weights not in ("int8", "int4"):
        raise ExportError(f"--weights is {weights!r}; expected int8 or int4")
    path = check_model_path(model)
    with Console(stderr=True).status(f"quantising {path}"):
        result = quantize_model(
            path,
            output,
            weights="int8" if weights == "int8" else "int4",
            external_data=external_data,
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(quantize_table(result))
    typer.echo(result.summary())


def quantize_table(result: QuantizeResult) -> Table:
    """Matrices of one kind and shape in one row, then the floats that stay."""
    from collections import Counter

    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD)
    made.add_column("")
    for name in ("count", "shape", "weights", "bytes before", "after"):
        made.add_column(name, justify="left" if name == "weights" else "right")
    made.add_column("")
    kinds = Counter((item.use, item.shape, item.weights, item.bytes_before, item.bytes_after)
                    for item in result.matrices)  # fmt: skip
    for (use, shape, weights, before, after), count in kinds.items():
        made.add_row(use, str(count), " x ".join(map(str, shape)), weights,
                     f"{before * count:,}", f"{after * count:,}")  # fmt: skip
    for item in result.kept:
        made.add_row(escape(item.name) or "others", str(item.count), "", item.dtype,
                     f"{item.bytes:,}", f"{item.bytes:,}", item.reason)  # fmt: skip
    return made


def report(result: Verification) -> None:
    """The table and the verdict, on standard output."""
    from rich.console import Console

    console = Console()
    console.print(table(result))
    if result.incremental is False:
        console.print("kvik could not prove this model incremental: it recomputed each sequence")
    if result.ok:
        console.print(f"[green]equal[/green]: largest error {result.largest_error:.2g}")
        return
    console.print(f"[red]different[/red]: largest error {result.largest_error:.2g}")
    reason = result.divergence.describe() if result.divergence else result.explanation
    console.print(reason, markup=False, highlight=False, soft_wrap=True)


def table(result: Verification) -> Table:
    from rich import box
    from rich.table import Table

    title = f"{result.path} against onnxruntime"
    made = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    for name in ("", "prompts", "compared"):
        made.add_column(name)
    made.add_column("largest error", justify="right")
    made.add_column("")
    for check in result.checks:
        verdict = "[green]ok[/green]" if check.ok else "[red]differs[/red]"
        if check.skipped:
            verdict = "[yellow]not run[/yellow]"
        error = "" if check.error is None else f"{check.error:.2g}"
        made.add_row(check.what, check.prompts, check.compared, error,
                     f"{verdict} {check.note}".strip())  # fmt: skip
    return made
