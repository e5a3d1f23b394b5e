"""`paceline tune`: the command line of paceline.bench.tune."""

from __future__ import annotations

from pathlib import Path

import click

from paceline.cli import bench_options as shared
from paceline.cli.help import examples
from paceline.cli.options import model_option


@click.command(
    epilog=examples(
        "paceline tune",
        "paceline tune --prompts mine.jsonl --seconds 300",
        "paceline tune --drafter suffix,suffix+ngram --nodes 4,8 --dry-run",
    )
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="Time limit, loading the model not included.",
)
@shared.prompts_option
@shared.max_tokens_option
@shared.drafter_option(
    "auto,suffix,ngram", "Drafters to try; options as in NAME:opt=val, then separated by ';'."
)
@click.option(
    "--nodes",
    default="2,4,8",
    show_default=True,
    metavar="N,N,...",
    help="Fixed numbers of drafted tokens to try with each, beside what the policy throughput does.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Measure and tell, but keep nothing.")
@model_option
@shared.threads_option
@shared.json_option
def command(
    seconds: float,
    prompts: Path | None,
    max_tokens: int,
    drafter: str,
    nodes: str,
    temperature: float,
    top_p: float,
    seed: int,
    dry_run: bool,
    model: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find the fastest drafter and policy for a model on this machine and your prompts, and keep the choice.

    `generate`, `chat` and `bench speed` then use it where neither --drafter nor --policy is given. It changes
    the speed, never the answer. Prints a table, and one JSON object as the last line. Exit code 1, and
    nothing kept, if any output differs from plain decoding's, or if the time was too short to tell.
    """  # fmt: skip
    from paceline.bench import tune as bench
    from paceline.sampling import SamplingParams

    report = bench.run(
        model=model,
        drafters=shared.split_drafters(drafter),
        nodes=shared.numbers("--nodes", nodes, 1, 16),
        prompts=prompts,
        params=SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed),
        seconds=seconds,
        threads=threads,
        note=shared.note,
    )
    report["command"] = shared.command_line()
    different = any(one["different_outputs"] for one in report["candidates"].values())
    failed = different or not report["enough"]
    if not failed and not dry_run:
        from paceline.bench.tuned import Profile, write

        kept = write(
            Profile(
                model,
                report["machine"]["threads"],
                report["drafter"],
                report["policy"],
                report["why"],
                report["date"],
            )
        )
        report["profile"] = str(kept)
        shared.note(f"kept in {kept}; delete it to undo the choice")
    shared.give_out(report, bench.table(report), as_json)
    if failed:
        click.get_current_context().exit(1)
