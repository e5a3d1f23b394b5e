"""`paceline export`: a trained drafter for another engine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from paceline.cli.help import examples


@click.command(
    epilog=examples(
        "paceline export drafter --to vllm",
        "paceline export drafter --to sglang --target org/model --out for-sglang",
        "paceline export old-drafter --to vllm --layers 30",
    )
)
@click.argument("folder", metavar="FOLDER")
@click.option("--to", required=True, type=click.Choice(["vllm", "sglang"]), help="Who is to load it.")
@click.option("--out", metavar="PATH", help="The folder that is written. [default: FOLDER-ENGINE]")
@click.option(
    "--target",
    default="",
    metavar="NAME",
    help="The model that the engine serves with it. [default: the one it was trained for]",
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="The target's layers, for a drafter that does not say"
    " which hidden states it reads: the usual ones are written then.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: str, to: str, out: str | None, target: str, layers: int | None, as_json: bool) -> None:
    """Write the trained drafter in FOLDER as another engine loads it, read it back and compare.

    For vLLM in the form of the speculators library, its own of Medusa heads, or transformers' of draft
    models; for SGLang in the native form of EAGLE-3 or DFlash. Prints the command that serves the target
    with it.
    """  # fmt: skip
    from paceline.trained.exports import export

    written = export(Path(folder), to, Path(out or f"{folder.rstrip('/')}-{to}"), target, layers)
    if as_json:
        record = {**written._asdict(), "folder": str(written.folder)}
        click.echo(json.dumps(record))
        return
    click.echo(
        f"{written.folder}: reads back as the same drafter, logits differ by {written.difference:.1g}",
        err=True,
    )
    click.echo(written.command)
