"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvik.errors import FileError, InvalidArgumentError

__all__ = ["ModelPath", "Threads", "TokenizerPath", "check_model_path"]

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", show_default=False, help="The .onnx file.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", show_default="one for each CPU", help="Threads to compute with."
    ),
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        show_default="the model's own",
        help="tokenizer.json, or a folder with one.",
    ),
]


def check_model_path(path: Path) -> Path:
    """The path, or an error that says what is wrong with it in the terms of a command line."""
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder: name the .onnx file in it")
    if not path.exists():
        raise FileError(f"no such file: {path}")
    return path
