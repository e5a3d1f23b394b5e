"""`paceline bench step`: the command line of paceline.bench.step."""

from __future__ import annotations

import click

from paceline.cli.bench_options import give_out, json_option, note, numbers, threads_option
from paceline.cli.help import examples
from paceline.cli.options import model_option


@click.command(
    epilog=examples("paceline bench step", "paceline bench step --rows 1,8 --context 1024 --threads 1 --json")
)
@click.option(
    "--rows", default="1,2,4,8,16,32", show_default=True, metavar="N,N,...", help="Tokens in a pass."
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Tokens in the cache before the pass.",
)
@model_option
@threads_option
@json_option
def command(rows: str, context: int, model: str, threads: int | None, as_json: bool) -> None:
    """Time one target pass per row count, beside the memory bandwidth measured in the same run.

    Prints a table, and one JSON object as the last line.
    """  # fmt: skip
    from paceline.bench import step as bench

    report = bench.run(
        model=model, rows=numbers("--rows", rows, 1, 1024), context=context, threads=threads, note=note
    )
    give_out(report, bench.table(report), as_json)
