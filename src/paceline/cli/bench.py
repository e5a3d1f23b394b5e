"""`paceline bench`: the command line of paceline.bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from paceline.cli.help import examples
from paceline.cli.options import DEFAULT_DRAFTER, model_option, policy_option
from paceline.errors import ConfigError

threads_option = click.option("--threads", type=int, help="Threads of a pass. [default: one per core]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the JSON object only, no table.")


@click.group(
    epilog=examples(
        "paceline bench speed --drafter auto,ngram --limit 24 --max-tokens 128",
        "paceline bench step --rows 1,2,4,8,16,32 --context 256",
    )
)
def command() -> None:
    """Measure speed on this machine, always against plain decoding in the same run."""


@command.command(
    epilog=examples(
        "paceline bench speed --limit 12",
        "paceline bench speed --drafter auto,suffix+ngram,suffix@heuristic",
        "paceline bench speed --prompts spec_bench.jsonl --drafter suffix,ngram --json",
        "paceline bench speed --temperature 0.7 --top-p 0.9 --seed 1",
    )
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='JSON lines with "turns" and "category". [default: the prompts that come along]',
)
@click.option(
    "--drafter",
    default=DEFAULT_DRAFTER,
    show_default=True,
    metavar="A,B",
    help="Drafters to compare with plain decoding; options as in NAME:opt=val, then separated by ';'. One"
    " with a policy of its own: DRAFTER@POLICY.",
)
@policy_option
@click.option(
    "--rule",
    default="match",
    show_default=True,
    metavar="NAME[:OPT=VAL,...]",
    help="What decides which drafted tokens are kept.",
)
@click.option("--allow-lossy", is_flag=True, help="Allow a rule that promises nothing.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use the first N prompts only.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="M",
    help="Tokens of an answer.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@model_option
@threads_option
@json_option
def speed(
    prompts: Path | None,
    drafter: str,
    policy: str,
    rule: str,
    allow_lossy: bool,
    limit: int | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    model: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Time drafters against plain decoding on the same prompts, interleaved.

    Prints a table, and one JSON object as the last line. Exit code 1 if any output differs from plain
    decoding's though the rule promises that none does.
    """  # fmt: skip
    from paceline.bench import speed as bench
    from paceline.sampling import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    report = bench.run(
        model=model,
        drafters=split_drafters(drafter),
        prompts=prompts,
        limit=limit,
        params=params,
        threads=threads,
        note=note,
        rule=rule,
        policy=policy,
        allow_lossy=allow_lossy,
    )
    _print(report, bench.table(report), as_json)
    if report["same_outputs_promised"] and any(
        entry["different_outputs"] for entry in report["drafters"].values()
    ):
        click.get_current_context().exit(1)


@command.command(
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
def step(rows: str, context: int, model: str, threads: int | None, as_json: bool) -> None:
    """Time one target pass per row count, beside the memory bandwidth measured in the same run.

    Prints a table, and one JSON object as the last line.
    """  # fmt: skip
    from paceline.bench import step as bench

    report = bench.run(model=model, rows=_rows(rows), context=context, threads=threads, note=note)
    _print(report, bench.table(report), as_json)


def split_drafters(text: str) -> list[str]:
    """Names from "a,b"; where options follow a colon, which hold commas themselves, from "a:x=1,y=2;b"."""
    names = text.split(";") if ";" in text or ":" in text else text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ConfigError(f"--drafter: found {text!r}, expected at least one name")
    return names


def _rows(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise ConfigError(f"--rows: found {text!r}, expected numbers from 1 to 1024, such as 1,8,16")
    return [int(part) for part in parts]


def note(text: str) -> None:
    """A remark on stderr."""
    click.secho(text, dim=True, err=True)


def _print(report: dict[str, Any], table: str, as_json: bool) -> None:
    if not as_json:
        click.echo(table)
    click.echo(json.dumps(report, ensure_ascii=False))
