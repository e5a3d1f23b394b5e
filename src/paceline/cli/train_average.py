"""`paceline train average`: the command line of paceline.train.average."""

from __future__ import annotations

import json
from pathlib import Path

import click

from paceline.cli.help import examples


@click.command(epilog=examples("paceline train average first/ second/ --out mean/"))
@click.argument("drafters", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the drafter is written.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def command(drafters: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Write the mean of DRAFTERS, folders of drafters that were trained one from another with --start-from,
    the newest last.

    Often better than each of them; `paceline train eval` tells. Needs no PyTorch.
    """
    from paceline.train.average import average

    card = average(drafters, out)
    if as_json:
        click.echo(json.dumps(card))
        return
    click.echo(
        f"{out}: {card['parameters']:,} parameters, {card['bytes']:,} bytes, the mean of {len(drafters)}"
    )
