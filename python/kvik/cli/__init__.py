"""The `kvik` command: one file per subcommand, imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `kvik`; exits the process with the command's status."""
    try:
        from kvik.cli.app import main as run
    except KeyboardInterrupt:  # Ctrl-C while the libraries are read
        sys.exit(130)
    run(argv)
