"""The table of subcommands, and what all of them do with errors.

Only the module of the subcommand that was asked for is imported; the summaries that `kvik --help`
lists stand here.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NamedTuple, NoReturn

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
    Command("run", "kvik.cli.run", "run", "Classify, tag, embed, translate and more."),
    Command(
        "inspect", "kvik.cli.inspect", "inspect", "Show what is in a model and what was proved."
    ),
    Command(
        "attention",
        "kvik.cli.attention",
        "attention",
        "Draw how much each token counts for each other one.",
    ),
    Command("bench", "kvik.cli.bench", "bench", "Measure speed and memory beside onnxruntime's."),
    Command("train", "kvik_train.cli", "train", "Train a small model of any family.", "train"),
    Command("finetune", "kvik_train.cli", "finetune", "Train it further, for a task.", "train"),
    Command("export", "kvik_export.cli", "export", "Write a checkpoint as an ONNX file.", "export"),
    Command(
        "verify", "kvik_export.cli", "verify", "Compare torch, onnxruntime and kvik.", "export"
    ),
    Command(
        "quantize", "kvik_export.cli", "quantize", "Store the weights as int8 or int4.", "export"
    ),
    Command("demo", "kvik_export.demo", "demo", "Train, export, prove, verify, generate.", "demo"),
)

# A wrong command line. Newer versions of typer bring click along, older ones import it.
_UsageError: type[Exception] = typer.BadParameter.__base__  # type: ignore[assignment]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Packages that the extras bring: when one of them is missing, its extra is the remedy.
_EXTRA_PACKAGES = {
    "torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "transformers", "matplotlib",
    "kvik_train", "kvik_export", "num2words", "sacrebleu", "sklearn", "PIL",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `kvik`; exits the process with the command's status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    name = _chosen(arguments)
    command = next((item for item in COMMANDS if item.name == name), None)
    with _one_line_errors(command):
        app = _make_app(command)
        try:
            # Not its standalone mode, which draws a box around an error.
            status = app(arguments, prog_name="kvik", standalone_mode=False)
        except _UsageError as error:
            _fail_usage(error, command)
    raise SystemExit(status or 0)


def _replace_closed_streams() -> None:
    """Python has None for a stream that the caller closed (`kvik ... >&-`): nobody wants it."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def _chosen(arguments: Sequence[str]) -> str:
    """The subcommand that the arguments name, or ""."""
    return next((item for item in arguments if not item.startswith("-")), "")


def _make_app(chosen: Command | None) -> typer.Typer:
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Run plainly exported ONNX language models on a CPU.",
    )
    app.callback()(_options)
    for command in COMMANDS:
        if command == chosen:
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
    """The function with its errors turned before typer sees them: it has its own way with some."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        with _one_line_errors(command):
            function(*args, **kwargs)

    return guarded


@contextmanager
def _one_line_errors(command: Command | None) -> Iterator[None]:
    """Errors as one line and an exit status, never a traceback."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the prompt of the shell goes on a line of its own
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output has left (`kvik generate ... | head`): so do we, as a program
        # that the signal ends.
        _discard_output()
        raise SystemExit(141) from None
    except ModuleNotFoundError as error:
        if command is None or not _from_extra(error):
            raise
        fail(_missing_extra(command, error))
    except Exception as error:
        fail(*_explained(error))


def _explained(error: Exception) -> tuple[str, int]:
    """What to say about an error, and the exit status; one that is a defect is raised again."""
    from kvik.errors import InternalError, KvikError

    if isinstance(error, InternalError):
        return f"internal: {error} (this is a defect in kvik: please report it)", 2
    if isinstance(error, (KvikError, MemoryError)):
        return str(error) or "out of memory", 2
    # The errors of kvik_train and kvik_export, which this package does not know.
    status = getattr(error, "exit_status", None)
    if isinstance(status, int):
        return str(error), status
    if isinstance(error, OSError):
        return _explained_os_error(error), 2
    raise error


def _explained_os_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    return f"can't write the output: {reason}" if error.errno in _DISK_FULL else reason


def _discard_output() -> None:
    """What standard output still holds goes nowhere: Python would try once more at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_usage(error: Any, command: Command | None) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":
        # With rich, typer has printed the help, and nothing is left to say.
        if message := error.format_message().strip():
            print(message)
        raise SystemExit(2)
    name = "kvik" if command is None else f"kvik {command.name}"
    fail(f"{error.format_message().rstrip().rstrip('.')}; see {name} --help")


def fail(message: str, status: int = 2) -> NoReturn:
    """End the command with one line on stderr."""
    print("kvik: error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)
