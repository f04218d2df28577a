"""`kvik train`. Importing this module does not import torch: help and errors come at once."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvik_train.errors import TrainError

if TYPE_CHECKING:
    from kvik_train.config import RunConfig

DEFAULT_PRESET = "char-tiny"


def train(
    preset: Annotated[
        str | None,
        typer.Option(
            help="char-tiny (default), char-small, gpt2, gpt2-medium, gpt2-large, gpt2-xl."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="python-stdlib (default), tinyshakespeare, or a text file or folder."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/PRESET when not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, or start it.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again where --out has a run already.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Windows per step, over all processes and accumulation parts."),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts in which a process takes its share of a batch.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Context length in tokens.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of linear warm-up.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout probability.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="char or bpe.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Largest vocabulary of the tokenizer.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Use this many bytes of the text; 0 for all of it.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16 (autocast).")] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic/--no-deterministic", help="Deterministic kernels on CUDA."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data order and dropout.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    eval_interval: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    eval_windows: Annotated[int | None, typer.Option(help="Windows per evaluation.")] = None,
    checkpoint_interval: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.")
    ] = None,
    log_interval: Annotated[int | None, typer.Option(help="Steps between log lines.")] = None,
) -> None:
    """Train a model; without options, a small GPT on Python's own standard library.

    Ctrl-C saves a checkpoint and stops; --resume continues bit for bit.
    """
    given: dict[str, dict[str, Any]] = {
        "train": {
            "steps": steps, "batch_size": batch_size, "accumulate": accumulate,
            "learning_rate": learning_rate, "warmup_steps": warmup, "device": device,
            "dtype": dtype, "compile": compile_, "deterministic": deterministic, "seed": seed,
            "threads": threads, "eval_interval": eval_interval, "eval_windows": eval_windows,
            "checkpoint_interval": checkpoint_interval, "log_interval": log_interval,
        },
        "data": {
            "source": data, "tokenizer": tokenizer, "vocab_size": vocab_size,
            "max_bytes": max_bytes,
        },
        "model": {"context_length": context, "dropout": dropout},
    }  # fmt: skip
    folder = out if out is not None else Path("runs", preset or DEFAULT_PRESET)
    if status := _train(preset, folder, resume, overwrite, given):
        raise typer.Exit(status)


def _train(
    preset: str | None,
    folder: Path,
    resume: bool,
    overwrite: bool,
    given: dict[str, dict[str, Any]],
) -> int:
    if resume and overwrite:
        raise TrainError("--resume continues a run and --overwrite discards it; give one of them")
    from kvik_train import run  # imports torch

    present = None if overwrite else run.find_checkpoint(folder)
    if present is None:
        config = _with_options(preset_config(preset or DEFAULT_PRESET), given)
        return _exit_status(run.run_training(config, folder))
    progress, saved = present.progress, present.config
    where = f"{folder} holds a run at step {progress.step} of {saved.train.steps}"
    if not resume:
        raise TrainError(
            f"{where}; add --resume to continue it, --overwrite to start again, "
            "or choose another --out"
        )
    if preset is not None and preset != saved.preset:
        raise TrainError(
            f"cannot resume: {where} of preset {saved.preset}, not {preset}; choose another --out"
        )
    config = _with_options(saved, given)
    if progress.step >= config.train.steps:
        from kvik_train.config import check_resumable

        check_resumable(saved, config)
        print(f"{where}: nothing left to do; give a larger --steps to train on")
        return 0
    return _exit_status(run.run_training(config, folder, present))


def preset_config(name: str) -> RunConfig:
    """The settings of a preset."""
    from kvik_train.config import RunConfig
    from kvik_train.presets import find_preset

    family, model, recipe = find_preset(name)
    return RunConfig(name, family, model, recipe.data, recipe.train)


def _with_options(base: RunConfig, given: dict[str, dict[str, Any]]) -> RunConfig:
    """The settings with those options replaced that the user gave."""
    chosen = {
        part: {name: value for name, value in options.items() if value is not None}
        for part, options in given.items()
    }
    if "max_bytes" in chosen["data"]:
        chosen["data"]["max_bytes"] = chosen["data"]["max_bytes"] or None
    elif chosen["data"].get("source", base.data.source) != base.data.source:
        # A preset's limit is for its own corpus; a text that the user names is used whole.
        chosen["data"]["max_bytes"] = None
    source = chosen["data"].get("source")
    if source is not None and Path(source).exists():
        chosen["data"]["source"] = str(Path(source).resolve())  # resumable from elsewhere
    return replace(
        base,
        model=replace(base.model, **chosen["model"]),
        data=replace(base.data, **chosen["data"]),
        train=replace(base.train, **chosen["train"]),
    )


def _exit_status(outcome: Any) -> int:
    """Zero, or 128 + the signal that ended the run, so that a script does not go on."""
    return 0 if outcome.stopped_by is None else 128 + int(outcome.stopped_by)


def _fail(error: object, status: int) -> int:
    if os.environ.get("RANK", "0") == "0":  # processes that train together fail together
        print(f"kvik: error: {error}", file=sys.stderr)
    return status


def main() -> None:
    """Run `train` as a program of its own, with the errors of the `kvik` command."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(train)
    usage_error: type[Exception] = typer.BadParameter.__base__  # type: ignore[assignment]
    try:
        sys.exit(app(prog_name="python -m kvik_train", standalone_mode=False))
    except usage_error as error:
        message: str = error.format_message()  # type: ignore[attr-defined]
        sys.exit(_fail(f"{message.rstrip('.')}; see --help", 2))
    except TrainError as error:
        sys.exit(_fail(error, error.exit_status))
    except OSError as error:  # a full disk, a folder without permission
        reason = error.strerror or error
        sys.exit(_fail(f"{error.filename}: {reason}" if error.filename else reason, 2))
    except KeyboardInterrupt:
        sys.exit(130)
