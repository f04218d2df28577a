"""The table of subcommands, and what all of them do with errors.

Only the module of the subcommand that was asked for is imported; the summaries that `kvik --help`
lists stand here.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

__all__ = ["fail", "main"]


class Command(NamedTuple):
    """A subcommand: where its function is, and which extra of the package it needs."""

    name: str
    module: str
    function: str
    summary: str
    extra: str = ""


COMMANDS = (
    Command("generate", "kvik.cli.generate", "generate", "Continue a prompt, as you watch."),
    Command(
        "inspect", "kvik.cli.inspect", "inspect", "Show what is in a model and what was proved."
    ),
    Command("bench", "kvik.cli.bench", "bench", "Measure speed and memory beside onnxruntime's."),
    Command("train", "kvik_train.cli", "train", "Train a small GPT.", "train"),
    Command("export", "kvik_export.cli", "export", "Write a checkpoint as an ONNX file.", "export"),
    Command(
        "verify", "kvik_export.cli", "verify", "Compare torch, onnxruntime and kvik.", "export"
    ),
    Command("demo", "kvik_export.demo", "demo", "Train, export, prove, verify, generate.", "demo"),
)

# Packages that the extras bring: when one of them is missing, its extra is the remedy.
_EXTRA_PACKAGES = {
    "torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "transformers", "matplotlib",
    "kvik_train", "kvik_export",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `kvik`; exits the process with the command's status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    app = _make_app(_chosen(arguments))
    app(arguments, prog_name="kvik")


def _chosen(arguments: Sequence[str]) -> str:
    """The subcommand that the arguments name, or ""."""
    return next((item for item in arguments if not item.startswith("-")), "")


def _make_app(chosen: str) -> typer.Typer:
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Run plainly exported ONNX language models on a CPU.",
    )
    app.callback()(_options)
    for command in COMMANDS:
        if command.name == chosen:
            app.command(command.name, help=None)(_guarded(command, _load(command)))
        else:
            app.command(command.name, help=command.summary)(_not_chosen)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from kvik import __version__

        print(f"kvik {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[  # noqa: ARG001, RUF100  (acted upon by its callback)
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of kvik itself."""


def _not_chosen() -> None:
    """Stands for a command that only has to be listed."""


def _load(command: Command) -> Callable[..., None]:
    """The command's function, or one that takes anything and says what to install."""
    try:
        function: Callable[..., None] = getattr(
            importlib.import_module(command.module), command.function
        )
    except ModuleNotFoundError as error:
        if not _from_extra(error):
            raise
        missing = error

        def unavailable() -> None:
            raise missing

        # No --help: whatever follows the name, the answer is the same.
        fail(_missing_extra(command, missing))
        return unavailable
    return function


def _from_extra(error: ModuleNotFoundError) -> bool:
    return (error.name or "").partition(".")[0] in _EXTRA_PACKAGES


def _missing_extra(command: Command, error: ModuleNotFoundError) -> str:
    return (
        f"kvik {command.name} needs {(error.name or '').partition('.')[0]}, which is not "
        f"installed: pip install 'kvik[{command.extra or 'demo'}]'"
    )


def _guarded(command: Command, function: Callable[..., None]) -> Callable[..., None]:
    """The function with its errors as one line and an exit status, never a traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from kvik.errors import InternalError, KvikError

        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except InternalError as error:
            fail(f"internal: {error} (this is a defect in kvik: please report it)")
        except (KvikError, MemoryError) as error:
            fail(str(error) or "out of memory")
        except ModuleNotFoundError as error:
            if not _from_extra(error):
                raise
            fail(_missing_extra(command, error))
        except KeyboardInterrupt:
            print(file=sys.stderr)  # the prompt of the shell goes on a line of its own
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output has left (`kvik generate ... | head`): so do we, as a
            # program that the signal ends, and without another write when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None

    return guarded


def fail(message: str) -> None:
    """End the command with one line on stderr and exit status 2."""
    print("kvik: error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)
