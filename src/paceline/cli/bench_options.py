"""What the commands of `paceline bench` share: options, and how a report is given out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from paceline.cli.options import model_option, policy_option, rows_option
from paceline.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)

threads_option = click.option("--threads", type=int, help="Threads of a pass. [default: one per core]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the JSON object only, no table.")
csv_option = click.option("--csv", "csv_file", type=FILE, metavar="FILE", help="Write the figures there too.")
html_option = click.option(
    "--html",
    type=FILE,
    metavar="FILE",
    help="Write a report with plots there, one page that needs nothing else. Needs paceline[plots].",
)
plots_option = click.option(
    "--plots", type=FILE, metavar="FOLDER", help="Write the plots there as PNG. Needs paceline[plots]."
)


prompts_option = click.option(
    "--prompts",
    type=FILE,
    metavar="FILE",
    help="JSON lines as in Spec-Bench, MT-bench, HumanEval or GSM8K. [default: the prompts that come along]",
)
max_tokens_option = click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="M",
    help="Tokens of an answer.",
)
limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use N prompts, spread over the categories. [default: all of FILE; two of each category of those"
    " that come along]",
)


def prompt_options(function: F) -> F:
    """--prompts, --limit, --max-tokens."""
    return prompts_option(limit_option(max_tokens_option(function)))


def run_options(default_policy: str) -> Callable[[F], F]:
    """--rule, --allow-lossy, --policy, --model, --threads, --rows."""

    def add(function: F) -> F:
        for decorate in (
            rows_option,
            threads_option,
            model_option,
            policy_option(default_policy),
            click.option("--allow-lossy", is_flag=True, help="Allow a rule that promises nothing."),
            click.option("--rule", default="match", show_default=True, metavar="NAME[:OPT=VAL,...]",
                         help="What decides which drafted tokens are kept."),
        ):  # fmt: skip
            function = decorate(function)
        return function

    return add


def drafter_option(default: str, help_text: str) -> Callable[[F], F]:
    """--drafter, of several."""
    return click.option("--drafter", default=default, show_default=True, metavar="A,B", help=help_text)


def split_drafters(text: str) -> list[str]:
    """Names from "a,b"; where options follow a colon, which hold commas themselves, from "a:x=1,y=2;b"."""
    names = text.split(";") if ";" in text or ":" in text else text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ConfigError(f"--drafter: found {text!r}, expected at least one name")
    return names


def numbers(option: str, text: str, low: float, high: float, kind: Callable[[str], float] = int) -> list[Any]:
    """Numbers from "1,2,4", each from low to high. Raises ConfigError naming the option."""
    found = []
    for part in text.split(","):
        try:
            found.append(kind(part))
        except ValueError:
            found.append(low - 1)
        if not low <= found[-1] <= high:
            what = "whole numbers" if kind is int else "numbers"
            raise ConfigError(
                f"{option}: found {text!r}, expected {what} from {low:g} to {high:g}, as in 1,2"
            )
    return list(dict.fromkeys(found))


def note(text: str) -> None:
    """A remark on stderr."""
    click.secho(text, dim=True, err=True)


def give_out(report: dict[str, Any], table: str, as_json: bool) -> None:
    """Print the table and, as the last line, the JSON object."""
    if not as_json:
        click.echo(table)
    click.echo(json.dumps(report, ensure_ascii=False))


def command_line() -> str:
    """What the user typed."""
    return shlex.join(["paceline", *click.get_current_context().obj])


def fail_if_different(report: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """Exit with 1 if outputs differ from plain decoding's though the rule promises that none does."""
    if report["same_outputs_promised"] and any(entry["different_outputs"] for entry in entries):
        click.get_current_context().exit(1)
