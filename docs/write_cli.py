"""Writes docs/cli.md from the program's own --help texts: python docs/write_cli.py"""

from __future__ import annotations

from pathlib import Path

import click

from paceline.cli.main import cli

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100


def page() -> str:
    """The page as it should be."""
    sections = ["# The command line\n\nMade from the `--help` texts by `make docs`.\n"]
    for path, command in commands("paceline", cli, None):
        context = click.Context(
            command, info_name=path, terminal_width=WIDTH, help_option_names=["-h", "--help"]
        )
        sections.append(f"## {path}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(sections)


def commands(
    path: str, command: click.Command, parent: click.Context | None
) -> list[tuple[str, click.Command]]:
    """The command and all commands below it, with what the user types for each."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path, parent=parent)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, "the group lists only what it has"
            found += commands(f"{path} {name}", inner, context)
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
