"""`kvik train` and `kvik finetune`.

Importing this module does not import torch: help and errors come at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvik_train.errors import TrainError

if TYPE_CHECKING:
    from kvik_train.config import RunConfig

DEFAULT_PRESET = "char-tiny"
Given = dict[str, dict[str, Any]]  # options by the part of the settings that they belong to


Data = Annotated[
    str | None,
    typer.Option(
        help="A file or folder, or a data set that comes along: python-stdlib, tinyshakespeare "
        "(text), python-modules, python-tags, python-functions, number-words, digits."
    ),
]
Target = Annotated[
    str | None, typer.Option(help="The file with the translations of --data, line by line.")
]
Validation = Annotated[
    str | None, typer.Option(help="A file or folder to validate with, not a part of --data.")
]
Columns = Annotated[
    str | None, typer.Option(help="What columns are called: text=review,label=stars.")
]
MaxBytes = Annotated[
    int | None, typer.Option(help="Use this many bytes of the text; 0 for all of it.")
]
MaxExamples = Annotated[
    int | None, typer.Option(help="Use this many examples of the data; 0 for all of them.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out, or start it.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Start again where --out has a run already.")
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Rows per step, over all processes and accumulation parts."),
]
Accumulate = Annotated[
    int | None, typer.Option(help="Parts in which a process takes its share of a batch.")
]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Warmup = Annotated[int | None, typer.Option(help="Steps of linear warm-up.")]
Dropout = Annotated[float | None, typer.Option(help="Dropout probability.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16 (autocast).")]
Compile = Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")]
Deterministic = Annotated[
    bool | None,
    typer.Option("--deterministic/--no-deterministic", help="Deterministic kernels on CUDA."),
]
Seed = Annotated[int | None, typer.Option(help="Of weights, data order and dropout.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of torch.")]
EvalInterval = Annotated[int | None, typer.Option(help="Steps between evaluations.")]
EvalWindows = Annotated[
    int | None, typer.Option(help="Windows of text, or examples, per evaluation.")
]
CheckpointInterval = Annotated[int | None, typer.Option(help="Steps between checkpoints.")]
LogInterval = Annotated[int | None, typer.Option(help="Steps between log lines.")]


def train(
    preset: Annotated[
        str | None,
        typer.Option(
            help="char-tiny (default), char-small, gpt2, gpt2-medium, gpt2-large, gpt2-xl, "
            "bert-tiny, bert-base, bert-large, transformer-tiny, transformer-base, "
            "transformer-big, rnn-tiny, lstm-tiny, gru-tiny, lstm-medium, lstm-large, "
            "seq2seq-tiny, seq2seq-luong, vit-tiny, vit-base-16, vit-large-16, cnn-tiny, lenet-5."
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="Instead of --preset, the smallest one of gpt, bert, transformer, rnn, seq2seq, "
            "vit or cnn."
        ),
    ] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/PRESET when not given.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    target: Target = None,
    validation: Validation = None,
    columns: Columns = None,
    max_bytes: MaxBytes = None,
    max_examples: MaxExamples = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    context: Annotated[int | None, typer.Option(help="Context length in tokens.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width of images, in pixels.")
    ] = None,
    learning_rate: LearningRate = None,
    warmup: Warmup = None,
    dropout: Dropout = None,
    tokenizer: Annotated[str | None, typer.Option(help="char, bpe or wordpiece.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Largest vocabulary of the tokenizer.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    compile_: Compile = None,
    deterministic: Deterministic = None,
    seed: Seed = None,
    threads: Threads = None,
    eval_interval: EvalInterval = None,
    eval_windows: EvalWindows = None,
    checkpoint_interval: CheckpointInterval = None,
    log_interval: LogInterval = None,
) -> None:
    """Train a model; without options, a small GPT on Python's own standard library.

    Ctrl-C saves a checkpoint and stops; --resume continues bit for bit.
    """
    given: Given = {
        "train": {
            "steps": steps, "batch_size": batch_size, "accumulate": accumulate,
            "learning_rate": learning_rate, "warmup_steps": warmup, "device": device,
            "dtype": dtype, "compile": compile_, "deterministic": deterministic, "seed": seed,
            "threads": threads, "eval_interval": eval_interval, "eval_windows": eval_windows,
            "checkpoint_interval": checkpoint_interval, "log_interval": log_interval,
        },
        "data": {
            "source": data, "target": target, "validation": validation, "columns": columns,
            "tokenizer": tokenizer, "vocab_size": vocab_size, "max_bytes": max_bytes,
            "max_examples": max_examples,
        },
        "model": {"context_length": context, "image_size": image_size, "dropout": dropout},
    }  # fmt: skip
    if preset is not None and family is not None:
        raise TrainError("--preset names a model of its own family; leave --family out")
    if family is not None:
        from kvik_train.presets import default_preset

        preset = default_preset(family)
    folder = out if out is not None else Path("runs", preset or DEFAULT_PRESET)

    def fresh() -> RunConfig:
        return preset_config(preset or DEFAULT_PRESET)

    if status := _train(fresh, folder, resume, overwrite, given, preset):
        raise typer.Exit(status)


def finetune(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the run to start from.")],
    task: Annotated[str, typer.Option(help="classify, tag, answer (BERT); classify, lm (GPT).")],
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; CHECKPOINT-TASK when not given.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    validation: Validation = None,
    columns: Columns = None,
    max_bytes: MaxBytes = None,
    max_examples: MaxExamples = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: LearningRate = None,
    warmup: Warmup = None,
    dropout: Dropout = None,
    device: Device = None,
    dtype: Dtype = None,
    compile_: Compile = None,
    deterministic: Deterministic = None,
    seed: Seed = None,
    threads: Threads = None,
    eval_interval: EvalInterval = None,
    eval_windows: EvalWindows = None,
    checkpoint_interval: CheckpointInterval = None,
    log_interval: LogInterval = None,
) -> None:
    """Train a model further, for a task of its own, with the weights and tokenizer of a run.

    Without --data, on labels that are made by rule from Python's own standard library.
    """
    given: Given = {
        "train": {
            "steps": steps, "batch_size": batch_size, "accumulate": accumulate,
            "learning_rate": learning_rate, "warmup_steps": warmup, "device": device,
            "dtype": dtype, "compile": compile_, "deterministic": deterministic, "seed": seed,
            "threads": threads, "eval_interval": eval_interval, "eval_windows": eval_windows,
            "checkpoint_interval": checkpoint_interval, "log_interval": log_interval,
        },
        "data": {
            "source": data, "validation": validation, "columns": columns, "max_bytes": max_bytes,
            "max_examples": max_examples,
        },
        "model": {"dropout": dropout},
    }  # fmt: skip
    base = checkpoint.parent if checkpoint.name == "checkpoint.pt" else checkpoint
    folder = out if out is not None else base.with_name(f"{base.name}-{task}")
    if folder.resolve() == base.resolve():
        raise TrainError(f"--out {folder} is the run to start from; choose another one")
    if status := _train(lambda: fine_tuning_config(base, task), folder, resume, overwrite, given):
        raise typer.Exit(status)


def _train(
    fresh: Callable[[], RunConfig],
    folder: Path,
    resume: bool,
    overwrite: bool,
    given: Given,
    preset: str | None = None,
) -> int:
    """Start a run with the settings of `fresh`, or continue the one that is in the folder."""
    if resume and overwrite:
        raise TrainError("--resume continues a run and --overwrite discards it; give one of them")
    from kvik_train import run  # imports torch

    present = None if overwrite else run.find_checkpoint(folder)
    if present is None:
        config = _with_options(fresh(), given)
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
    from kvik_train.models import FAMILIES
    from kvik_train.presets import find_preset

    family, model, recipe = find_preset(name)
    task = next(iter(FAMILIES[family].models))
    return RunConfig(name, family, model, recipe.data, recipe.train, task)


def fine_tuning_config(base: Path, task: str) -> RunConfig:
    """The settings of a second stage that starts from the run in `base`."""
    from kvik_train.checkpoint import checkpoint_path, read_checkpoint
    from kvik_train.config import RunConfig
    from kvik_train.presets import find_fine_tuning

    saved = read_checkpoint(checkpoint_path(base)).config
    recipe = find_fine_tuning(saved.family, task)
    data = replace(recipe.data, tokenizer=saved.data.tokenizer, vocab_size=saved.data.vocab_size)
    return RunConfig(
        saved.preset, saved.family, saved.model, data, recipe.train, task, str(base.resolve())
    )


def _with_options(base: RunConfig, given: Given) -> RunConfig:
    """The settings with those options replaced that the user gave."""
    chosen = {
        part: {name: value for name, value in options.items() if value is not None}
        for part, options in given.items()
    }
    for limit in ("max_bytes", "max_examples"):
        if limit in chosen["data"]:
            chosen["data"][limit] = chosen["data"][limit] or None
        elif chosen["data"].get("source", base.data.source) != base.data.source:
            # A preset's limit is for its own data; what the user names is used whole.
            chosen["data"][limit] = None
    for name in ("source", "target", "validation"):
        path = chosen["data"].get(name)
        if path is not None and Path(path).exists():
            chosen["data"][name] = str(Path(path).resolve())  # resumable from elsewhere
    for name in chosen["model"]:
        if not hasattr(base.model, name):
            option = f"--{name.removesuffix('_length').replace('_', '-')}"
            raise TrainError(f"a {base.family} model has no {name}; leave {option} out")
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
