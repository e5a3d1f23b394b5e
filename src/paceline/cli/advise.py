"""`paceline advise`: the command line of paceline.bench.advise."""

from __future__ import annotations

import click

from paceline.cli import bench_options as shared
from paceline.cli.help import examples
from paceline.cli.options import model_option


@click.command(
    epilog=examples(
        "paceline advise",
        "paceline advise --acceptance 0.55 --draft-cost 0.1",
        "paceline advise --batch 8 --context 2048 --json",
    )
)
@click.option(
    "--acceptance",
    default="0.2,0.4,0.6,0.8,0.9",
    show_default=True,
    metavar="A,A,...",
    help="How likely a drafted token is accepted if all before it were, 0 to 1.",
)
@click.option(
    "--draft-cost",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="C",
    help="What a drafted token costs, in plain passes: about 0 for lookups, the size of a draft"
    " model by the target's.",
)
@click.option("--batch", type=click.IntRange(1, 32), default=1, show_default=True, help="Requests at a time.")
@click.option(
    "--context", type=click.IntRange(min=1), default=256, show_default=True, help="Tokens in the cache."
)
@model_option
@shared.threads_option
@shared.json_option
def command(
    acceptance: str,
    draft_cost: float,
    batch: int,
    context: int,
    model: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Estimate what speculation could bring here, from what passes cost, before any drafter is run.

    Says how often drafted tokens must be accepted to pay, and how many to draft at which acceptance. Prints
    tables, and one JSON object as the last line.
    """  # fmt: skip
    from paceline.bench import advise as bench

    report = bench.run(
        model=model,
        acceptance=shared.numbers("--acceptance", acceptance, 0, 1, float),
        draft_cost=draft_cost,
        batch=batch,
        context=context,
        threads=threads,
        note=shared.note,
    )
    report["command"] = shared.command_line()
    shared.give_out(report, bench.table(report), as_json)
