"""The error that exporting and verifying report to their user."""

from __future__ import annotations


class ExportError(Exception):
    """One line: what cannot be exported or verified, why, and what to do."""

    exit_status = 2  # of the command


def first_line(error: BaseException) -> str:
    """The first line of the innermost cause: what a user can act on in torch's long reports."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
