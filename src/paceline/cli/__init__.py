"""The command line: one file per command, imported only when that command runs."""

from paceline.cli.main import main

__all__ = ["main"]
