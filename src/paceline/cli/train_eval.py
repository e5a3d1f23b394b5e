"""`paceline train eval`: the command line of paceline.train.evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import click

from paceline.cli import bench_options as shared
from paceline.cli.help import examples
from paceline.cli.options import policy_option


@click.command(
    epilog=examples(
        "paceline train eval drafter/ --prompts spec_bench.jsonl",
        "paceline train eval drafter/ --options widths=1x1x1x1x1 --temperature 0 --temperature 1 --json",
    )
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="The target. [default: the model that the drafter was trained for, under the same name]",
)
@click.option("--options", default="", metavar="OPT=VAL,...", help="Options of the drafter.")
@shared.prompt_options
@click.option(
    "--temperature",
    "temperatures",
    type=float,
    multiple=True,
    default=(0.0, 1.0),
    show_default=True,
    help="Repeatable; each is measured.",
)
@policy_option("fixed")
@shared.threads_option
@shared.json_option
def command(
    folder: Path,
    model: str | None,
    options: str,
    prompts: Path | None,
    limit: int | None,
    max_tokens: int,
    temperatures: tuple[float, ...],
    policy: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the drafter in FOLDER against plain decoding, and write the result into its card.

    Prompts that it was trained on say nothing. Exit code 1 if any output differs from plain decoding's.
    """  # fmt: skip
    from paceline.bench import speed
    from paceline.train.evaluate import evaluate

    reports = evaluate(
        folder,
        model=model,
        options=options,
        prompts=prompts,
        limit=limit,
        max_tokens=max_tokens,
        temperatures=temperatures,
        policy=policy,
        threads=threads,
        note=shared.note,
    )
    for report in reports:
        if not as_json:
            click.echo(speed.table(report))
    click.echo(json.dumps(reports, ensure_ascii=False))
    for report in reports:
        shared.fail_if_different(report, list(report["drafters"].values()))
