"""`paceline train tasks`: the command line of paceline.train.tasks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paceline.cli.help import examples
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.train.tasks import Task


@click.command(
    epilog=examples(
        "paceline train tasks out/ --base drafter/ --task maths=maths/,sums/ --task code=code/,programs/"
    )
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--base",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The EAGLE-3 drafter that the adapters were trained from.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME=ADAPTERS,DATA",
    help="A task: the folder of its adapters, and the data set that they were trained on. Repeatable.",
)
@click.option(
    "--least-probability",
    type=float,
    default=0.6,
    show_default=True,
    help="Where no task is as likely the base drafter drafts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    folder: Path, base: Path, tasks: tuple[str, ...], least_probability: float, as_json: bool
) -> None:
    """Put adapters of several tasks and their drafter into FOLDER, with a router that tells prompts apart.

    Says what the router does with prompts that were held out. Needs no PyTorch.
    """
    from paceline.train.tasks import assemble

    routed = assemble(folder, base, [_task(text) for text in tasks], least_probability)
    summary = {"folder": str(folder), **asdict(routed)}
    if as_json:
        click.echo(json.dumps(summary))
        return
    for key, value in summary.items():
        click.echo(f"{key:<8} {value}")


def _task(text: str) -> Task:
    from paceline.train.tasks import Task

    name, _, folders = text.partition("=")
    adapters, _, data = folders.partition(",")
    if not (name and adapters and data):
        raise ConfigError(f"--task: found {text!r}, expected NAME=ADAPTERS,DATA")
    return Task(name, Path(adapters), Path(data))
