"""`paceline train`: the group of its commands."""

from __future__ import annotations

import click

from paceline.cli import train_average, train_data, train_eval, train_run, train_tasks
from paceline.cli.help import examples


@click.group(
    epilog=examples(
        "paceline train data answers/ --prompts prompts.jsonl --max-tokens-total 10000000",
        "paceline train run answers/ --out drafter/",
        "paceline train eval drafter/ --prompts spec_bench.jsonl",
    )
)
def command() -> None:
    """Train a drafter for a model of your own (docs/training.md)."""


command.add_command(train_data.command, "data")
command.add_command(train_run.command, "run")
command.add_command(train_eval.command, "eval")
command.add_command(train_average.command, "average")
command.add_command(train_tasks.command, "tasks")
