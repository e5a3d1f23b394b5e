"""The `paceline` program: finds the command, runs it, and turns every outcome into an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from paceline.cli.help import EXIT_CODES, examples
from paceline.errors import PacelineError

COMMANDS = {
    "demo": "See it work: the same answer, plain and with speculation.",
    "generate": "Answer one prompt.",
    "chat": "Talk with a model.",
    "serve": "Answer OpenAI's HTTP interface.",
    "datastore": "Make and inspect texts of your own to draft from.",
    "train": "Train a drafter for a model of your own.",
    "models": "List, fetch and inspect models.",
    "export": "Write a trained drafter as vLLM or SGLang loads it.",
    "bench": "Measure speed on this machine.",
    "advise": "Estimate what speculation could bring here, before running any.",
    "tune": "Find the fastest drafter for your prompts, and keep the choice.",
    "audit": "Re-check exactness on your model, drafter and settings.",
    "doctor": "Check that everything works here.",
}
"""Each command is the object `command` of the module with its name."""


class _Lazy(click.Group):
    """Knows its commands' names and one-line helps without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"paceline.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"paceline {version('paceline')}")
        except PackageNotFoundError:
            click.echo("paceline (not installed)")
        ctx.exit()


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "paceline demo",
        'paceline generate "Why is the sky blue?"',
        "paceline chat",
        "paceline models list",
        "paceline doctor",
    )
    + EXIT_CODES,
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
              help="Show the version and exit.")  # fmt: skip
def cli() -> None:
    """Faster answers from a language model, token for token the same as without.

    Data goes to stdout; notes and progress go to stderr.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit: see EXIT_CODES. A user's mistake is one line on stderr."""
    # A terminal that cannot show a character must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # The library's warnings are for people too.
    warnings.showwarning = lambda message, *_: print(f"paceline: note: {message}", file=sys.stderr)
    # A polite kill tidies up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter's last flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    # Not cli.main(): it has its own ways with Ctrl-C, closed pipes and error messages.
    words = list(sys.argv[1:] if arguments is None else arguments)
    colour = False if os.environ.get("NO_COLOR") else None
    try:
        with cli.make_context("paceline", list(words), color=colour, obj=words) as context:
            cli.invoke(context)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except PacelineError as error:
        return _fail(str(error), error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "paceline"
        message = error.format_message()
        if isinstance(error, click.NoSuchOption) and error.ctx:
            options = error.ctx.command.get_params(error.ctx)
            names = {name for option in options for name in option.opts if name.startswith("--")}
            message = f"{path} has no option {error.option_name}; it has {', '.join(sorted(names))}"
        return _fail(f"{message} (see `{path} --help`)", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except MemoryError:
        return _fail("out of memory; use a smaller model or a smaller --context", 2)


def _fail(message: str, code: int) -> int:
    print(f"paceline: error: {' '.join(message.split())}", file=sys.stderr)
    return code
