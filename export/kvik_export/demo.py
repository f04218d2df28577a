"""`kvik demo`: from Python's own source to a model that generates, in one command.

Each step is one that a user takes alone later, and prints the command that does so. A step whose
result is there already is not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvik_export.cli import report

if TYPE_CHECKING:
    from rich.console import Console

PRESET = "char-tiny"
PROMPTS = ("def read_", "class Node", "import ")
NEW_TOKENS = 112  # prompt and answer stay below the context of the preset
SEED = 3
BENCH = (64, 64, 5)  # prompt tokens, new tokens, rounds


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where the run and the model go.")] = Path(
        "demo"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help=f"Training steps instead of {PRESET}'s.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the engines; not of the training.")
    ] = None,
) -> None:
    """Train a small GPT, export it, prove it incremental, verify it, generate, and time it.

    Run again it reuses what is finished. Exit status 1: the engines do not agree.
    """
    from rich.console import Console

    started = time.monotonic()
    tour = _Tour(folder, steps, threads, Console(highlight=False))
    for number, step in enumerate(tour.steps, start=1):
        tour.heading(f"{number}/{len(tour.steps)}  {step.title}", step.command)
        step.run()
    seconds = time.monotonic() - started
    tour.console.print(f"\nDone in {seconds:.0f} s. The model is {tour.model}; next: kvik --help")


@dataclass(frozen=True)
class _Step:
    title: str
    command: str  # that does the same alone
    run: Callable[[], None]


class _Tour:
    """The steps, and where each finds the results of those before it."""

    def __init__(
        self, folder: Path, train_steps: int | None, threads: int | None, console: Console
    ) -> None:
        self.folder = folder
        self.train_steps = train_steps
        self.threads = threads
        self.console = console
        self.run_folder = folder / "run"
        self.model = folder / "gpt.onnx"
        limit = "" if train_steps is None else f" --steps {train_steps}"
        self.steps = (
            _Step(
                "Train a GPT on the source of Python's standard library",
                f"kvik train --preset {PRESET}{limit} --out {self.run_folder}",
                self.train,
            ),
            _Step(
                "Export its plain forward pass to ONNX",
                f"kvik export {self.run_folder} -o {self.model}",
                self.export,
            ),
            _Step(
                "Prove from the graph that it may run with a cache",
                f"kvik inspect {self.model}",
                self.prove,
            ),
            _Step(
                "Verify torch = onnxruntime = kvik",
                f"kvik verify {self.model} --checkpoint {self.run_folder}",
                self.verify,
            ),
            _Step(
                "Generate",
                f'kvik generate {self.model} "{PROMPTS[0]}" -n {NEW_TOKENS} --seed {SEED} --echo',
                self.generate,
            ),
            _Step(
                "Time it beside onnxruntime",
                f"kvik bench {self.model} -p {BENCH[0]} -n {BENCH[1]} --rounds {BENCH[2]}",
                self.bench,
            ),
        )

    def heading(self, title: str, command: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left")
        self.console.print(f"$ {command}", style="dim", markup=False)

    def train(self) -> None:
        from kvik_train import cli, run

        found = run.find_checkpoint(self.run_folder)
        steps = self.train_steps
        if steps is None:
            steps = cli.preset_config(PRESET).train.steps
        if found is not None and found.progress.step >= steps:
            self._reused(
                f"{self.run_folder} is trained: validation loss "
                f"{found.progress.validation_loss or float('nan'):.3f}"
            )
            return
        # An interrupted demo goes on where it was.
        cli.train(preset=PRESET, out=self.run_folder, resume=found is not None, steps=steps)

    def export(self) -> None:
        from kvik_export.exporter import export_checkpoint
        from kvik_train.checkpoint import checkpoint_path

        checkpoint = checkpoint_path(self.run_folder)
        if self.model.is_file() and self.model.stat().st_mtime >= checkpoint.stat().st_mtime:
            self._reused(f"{self.model} is newer than the checkpoint")
            return
        with self.console.status("exporting"):
            result = export_checkpoint(self.run_folder, self.model)
        self.console.print(result.summary(), markup=False)

    def prove(self) -> None:
        import kvik

        model = kvik.load(self.model, threads=self.threads)
        self.console.print(model.explain(), markup=False, soft_wrap=True)

    def verify(self) -> None:
        from kvik_export.verify import verify_model

        with self.console.status("loading") as status:
            result = verify_model(
                self.model, checkpoint=self.run_folder, threads=self.threads,
                on_step=status.update,
            )  # fmt: skip
        report(result)
        if not result.ok:
            raise typer.Exit(1)

    def generate(self) -> None:
        from kvik.cli.generate import generate

        for prompt in PROMPTS:
            generate(
                self.model, prompt, max_new_tokens=NEW_TOKENS, seed=SEED, echo=True,
                threads=self.threads,
            )  # fmt: skip

    def bench(self) -> None:
        from kvik.cli.bench import bench

        prompt_tokens, new_tokens, rounds = BENCH
        bench(
            self.model, prompt_tokens=prompt_tokens, new_tokens=new_tokens, rounds=rounds,
            threads=self.threads,
        )  # fmt: skip

    def _reused(self, what: str) -> None:
        self.console.print(f"{what}; reused", markup=False)
