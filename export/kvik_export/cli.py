"""`kvik export` and `kvik verify`. Importing this module loads neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from kvik_export.verify import Verification


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a training run, or checkpoint.pt.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")] = Path(
        "model.onnx"
    ),
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 23.")] = 23,
    external_data: Annotated[
        bool | None,
        typer.Option(
            "--external-data/--inline",
            help="Weights in a file beside the model. By default only when they exceed 2 GiB.",
        ),
    ] = None,
) -> None:
    """Export the plain forward pass of a trained model to ONNX."""
    from rich.console import Console

    from kvik_export.exporter import export_checkpoint

    with Console(stderr=True).status(f"exporting {checkpoint}"):
        result = export_checkpoint(checkpoint, output, opset=opset, external_data=external_data)
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

    with Console(stderr=True).status("loading") as status:
        result = verify_model(
            model, checkpoint=checkpoint, greedy_steps=steps, length=length, threads=threads,
            on_step=status.update,
        )  # fmt: skip
    report(result)
    raise typer.Exit(0 if result.ok else 1)


def report(result: Verification) -> None:
    """The table and the verdict, on standard output."""
    from rich.console import Console

    console = Console()
    console.print(table(result))
    if not result.incremental:
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
        error = "" if check.error is None else f"{check.error:.2g}"
        made.add_row(check.what, check.prompts, check.compared, error,
                     f"{verdict} {check.note}".strip())  # fmt: skip
    return made
