"""The `kvik` command: one file per subcommand, imported when it is called."""

from kvik.cli.app import main

__all__ = ["main"]
