"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from kvik.arguments import CacheType, WeightType, check_choice
from kvik.errors import FileError, InvalidArgumentError

if TYPE_CHECKING:
    from kvik.model import Model

__all__ = [
    "Cache",
    "ModelPath",
    "Threads",
    "TokenizerPath",
    "Weights",
    "check_cache",
    "check_generates",
    "check_model_path",
    "check_weights",
]

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", show_default=False, help="The .onnx file.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", show_default="one for each CPU", help="Threads to compute with."
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights", "-w", help="Precision of the weights in memory: f32, bf16, int8 or int4."
    ),
]
Cache = Annotated[
    str,
    typer.Option("--cache", help="Precision of the keys and values: f32, bf16 or int8."),
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        show_default="the model's own",
        help="tokenizer.json, or a folder with one.",
    ),
]


def check_weights(name: str) -> WeightType:
    """One of the precisions, or an error that lists them."""
    check_choice(name, "--weights", get_args(WeightType))
    return cast("WeightType", name)


def check_cache(name: str) -> CacheType:
    """One of the cache's precisions, or an error that lists them."""
    check_choice(name, "--cache", get_args(CacheType))
    return cast("CacheType", name)


def check_generates(model: Model, path: Path) -> None:
    """That a model continues texts, or an error that names the command for what it does."""
    if not model.generates:
        raise InvalidArgumentError(
            f"{path} continues no texts, its task is {model.task}: use kvik run"
        )


def check_model_path(path: Path) -> Path:
    """The path, or an error that says what is wrong with it in the terms of a command line."""
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder: name the .onnx file in it")
    if not path.exists():
        raise FileError(f"no such file: {path}")
    return path
