"""`paceline bench sweep`: the command line of paceline.bench.sweep."""

from __future__ import annotations

from pathlib import Path

import click

from paceline.cli import bench_options as shared
from paceline.cli.help import examples

SWEPT_POLICY = "fixed"
"""Every budget is used as it is; under throughput it would be no more than a limit."""


@click.command(
    epilog=examples(
        "paceline bench sweep",
        "paceline bench sweep --drafter suffix,auto@throughput --nodes 2,4,8 --html report.html",
        "paceline bench sweep --nodes 4 --temperature 0,0.5,1 --batch 1,2,4,8 --csv sweep.csv",
        "paceline bench sweep --nodes 4,8 --context 0,1024,4096 --limit 14 --plots plots",
    )
)
@click.option(
    "--nodes",
    default="1,2,4,8,16",
    show_default=True,
    metavar="N,N,...",
    help="Drafted tokens per request and step.",
)
@click.option("--temperature", default="0", show_default=True, metavar="T,T,...", help="0 is greedy.")
@click.option("--batch", default="1", show_default=True, metavar="B,B,...", help="Requests at a time.")
@click.option(
    "--context",
    default="0",
    show_default=True,
    metavar="N,N,...",
    help="Fill prompts up to so many tokens; 0 takes them as they are.",
)
@shared.prompt_options
@shared.drafter_option("auto", "Drafters to sweep, as in `paceline bench speed`.")
@shared.run_options(SWEPT_POLICY)
@click.option("--seed", type=int, default=0, show_default=True)
@shared.csv_option
@shared.plots_option
@shared.html_option
@shared.json_option
def command(
    nodes: str,
    temperature: str,
    batch: str,
    context: str,
    prompts: Path | None,
    limit: int | None,
    max_tokens: int,
    drafter: str,
    rule: str,
    allow_lossy: bool,
    policy: str,
    model: str,
    threads: int | None,
    rows: int | None,
    seed: int,
    csv_file: Path | None,
    plots: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Time drafters with several node budgets, temperatures, batches and contexts, beside plain decoding.

    Every combination is run, interleaved: mind how many there are. Prints a table, and one JSON object as the
    last line. Exit code 1 if outputs differ from plain decoding's though the rule promises that none does.
    """  # fmt: skip
    from paceline.bench import export
    from paceline.bench import sweep as bench
    from paceline.sampling import SamplingParams

    lists = bench.Lists(
        shared.numbers("--nodes", nodes, 1, 256),
        shared.numbers("--temperature", temperature, 0, 100, float),
        shared.numbers("--batch", batch, 1, 256),
        shared.numbers("--context", context, 0, 1_000_000),
    )
    export.check(csv_file, plots, html)
    report = bench.run(
        model=model,
        drafters=shared.split_drafters(drafter),
        lists=lists,
        prompts=prompts,
        limit=limit,
        params=SamplingParams(max_tokens=max_tokens, seed=seed),
        threads=threads,
        rows=rows,
        note=shared.note,
        rule=rule,
        policy=policy,
        allow_lossy=allow_lossy,
    )
    report["command"] = shared.command_line()
    table = bench.table(report)
    shared.give_out(report, table, as_json)
    export.write(report, table, csv_file, plots, html)
    shared.fail_if_different(report, report["results"])
