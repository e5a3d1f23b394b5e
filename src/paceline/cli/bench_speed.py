"""`paceline bench speed`: the command line of paceline.bench.speed."""

from __future__ import annotations

from pathlib import Path

import click

from paceline.cli import bench_options as shared
from paceline.cli.help import examples
from paceline.cli.options import DEFAULT_DRAFTER, DEFAULT_POLICY, tuned


@click.command(
    epilog=examples(
        "paceline bench speed --limit 14",
        "paceline bench speed --drafter auto,suffix+ngram,suffix@heuristic",
        "paceline bench speed --prompts spec_bench.jsonl --drafter suffix,ngram --json",
        "paceline bench speed --temperature 0.7 --top-p 0.9 --seed 1 --html report.html",
    )
)
@shared.prompt_options
@shared.drafter_option(
    DEFAULT_DRAFTER,
    "Drafters to compare with plain decoding; options as in NAME:opt=val, then separated by ';'. One with a"
    " policy of its own: DRAFTER@POLICY.",
)
@shared.run_options(DEFAULT_POLICY)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@shared.csv_option
@shared.html_option
@shared.json_option
def command(
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
    temperature: float,
    top_p: float,
    seed: int,
    csv_file: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Time drafters against plain decoding on the same prompts, interleaved.

    Prints a table, and one JSON object as the last line. Exit code 1 if any output differs from plain
    decoding's though the rule promises that none does.
    """  # fmt: skip
    from paceline.bench import export
    from paceline.bench import speed as bench
    from paceline.sampling import SamplingParams

    export.check(csv_file, None, html)
    drafter, policy = tuned(model, threads, rule, drafter, policy)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    report = bench.run(
        model=model,
        drafters=shared.split_drafters(drafter),
        prompts=prompts,
        limit=limit,
        params=params,
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
    export.write(report, table, csv_file, None, html)
    shared.fail_if_different(report, list(report["drafters"].values()))
