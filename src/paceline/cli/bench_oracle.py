"""`paceline bench oracle`: the command line of paceline.bench.oracle."""

from __future__ import annotations

from pathlib import Path

import click

from paceline.cli import bench_options as shared
from paceline.cli.help import examples
from paceline.cli.options import model_option, policy_option


@click.command(
    epilog=examples(
        "paceline bench oracle --drafter suffix,recycling",
        "paceline bench oracle --drafter suffix,ngram --temperature 1 --json",
    )
)
@shared.prompt_options
@shared.drafter_option(
    "suffix,recycling", "Drafters to judge; options as in NAME:opt=val, then separated by ';'."
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@policy_option()
@model_option
@shared.threads_option
@shared.json_option
def command(
    prompts: Path | None,
    limit: int | None,
    max_tokens: int,
    drafter: str,
    temperature: float,
    top_p: float,
    seed: int,
    policy: str,
    model: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Say how much faster perfect choices would be: of the drafter in each pass, and of what to score.

    Answers plainly, asks every drafter at every token, and plays policies on that record, by what passes cost
    on this machine. Prints a table, and one JSON object as the last line.
    """  # fmt: skip
    from paceline.bench import oracle as bench
    from paceline.sampling import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    report = bench.run(
        model=model,
        drafters=shared.split_drafters(drafter),
        prompts=prompts,
        limit=limit,
        params=params,
        threads=threads,
        note=shared.note,
        policy=policy,
    )
    report["command"] = shared.command_line()
    shared.give_out(report, bench.table(report), as_json)
