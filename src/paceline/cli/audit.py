"""`paceline audit`: the command line of paceline.audit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from paceline.cli.bench_options import note, split_drafters
from paceline.cli.help import examples
from paceline.cli.options import (
    DEFAULT_DRAFTER,
    DEFAULT_MODEL,
    DEFAULT_POLICY,
    rows_option,
    sampling_options,
    sampling_params,
)
from paceline.errors import ConfigError

LENGTH, TABLE_LENGTH = 128, 24
CODES = {"held": 0, "failed": 1, "could not run": 2}
FREE = ("seed", "max_tokens")
"""Options that leave the settings of the table model's self-check as they are."""
if TYPE_CHECKING:
    from paceline.sampling import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])


def _sampling(function: F) -> F:
    return sampling_options(
        function, {"max_tokens": f"{LENGTH}; with --model table {TABLE_LENGTH}", "seed": "0"}
    )


@click.command(
    epilog=examples(
        "paceline audit --temperature 0",
        "paceline audit --prompts questions.jsonl --limit 40 --temperature 0.8 --top-p 0.9",
        "paceline audit --rule recursive --drafter markov:widths=2x2 --tokens 20000 --html audit.html",
        "paceline audit --model table",
        "paceline audit --url http://localhost:8000 --tokens 50000",
    )
)
@click.option(
    "--model",
    metavar="NAME|FILE|table",
    envvar="PACELINE_MODEL",
    show_envvar=True,
    help="A name from `paceline models list`, a GGUF file, a folder of safetensors, or"
    " table[:vocab_size=8,spread=1.5,seed=0]: a tiny exact model, for checking the engine itself. With --url"
    " the server's name for the model."
    f" [default: {DEFAULT_MODEL}]",
)
@click.option(
    "--drafter",
    metavar="A,B",
    help="Drafters to audit; options as in NAME:opt=val, then separated by ';'. [default: auto; with"
    " --model table all that fit]",
)
@click.option(
    "--policy",
    metavar="NAME[:OPT=VAL,...]",
    help=f"What decides how much is drafted. [default: {DEFAULT_POLICY}; with --model table fixed,"
    " which drafts most]",
)
@click.option(
    "--rule",
    metavar="A,B",
    help="Rules to audit, written as drafters are. [default: match; with --model table all that promise"
    " something]",
)
@click.option(
    "--allow-lossy", is_flag=True, help="Allow rules that promise nothing. They are expected to fail."
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='JSON lines with "turns" and "category". [default: the prompts that come along]',
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Use N prompts, spread over the categories."
)
@_sampling
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens for the sequential test, per rule and drafter; more show smaller faults. [default: 10000;"
    " with --model table 200000 shared by all pairs]",
)
@click.option(
    "--alpha",
    type=float,
    default=1e-3,
    show_default=True,
    help="How often the sequential tests together may call an exact engine false.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=256),
    default=4,
    show_default=True,
    help="Answers at a time, besides one at a time.",
)
@click.option("--threads", type=int, help="Threads of a pass. [default: one per core]")
@rows_option
@click.option(
    "--url",
    metavar="URL",
    help="Audit an OpenAI-compatible server, such as http://localhost:8000: do its tokens come from the"
    " log-probabilities that it states? A key is taken from PACELINE_API_KEY.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the report as a page, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON object only, no table.")
def command(
    model: str | None,
    drafter: str | None,
    policy: str | None,
    rule: str | None,
    allow_lossy: bool,
    prompts: Path | None,
    limit: int | None,
    tokens: int | None,
    alpha: float,
    batch: int,
    threads: int | None,
    rows: int | None,
    url: str | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Re-check exactness: is speculation's answer the target's own?

    At temperature 0, and under rules that promise tokens at any temperature, every answer is compared with
    plain decoding's, and plain decoding with a slow reference. Above 0 a sequential test compares the tokens
    drawn with the target's law. Takes all sampling controls; the ones you use are the ones to check.

    Prints a table, and where stdout is no terminal one JSON object as the last line. Exit code 0: held;
    1: failed; 2: could not run.
    """  # fmt: skip
    from paceline.audit.report import text

    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha must be above 0 and below 1, got {alpha:g}")
    if url is not None:
        report = _server(url, model, drafter, policy, rule, rows, prompts, limit, options, tokens, alpha)
    else:
        report = _engine(
            model or DEFAULT_MODEL,
            drafter,
            policy,
            rule,
            allow_lossy,
            prompts,
            limit,
            options,
            tokens,
            alpha,
            batch,
            threads,
            rows,
        )
    if html is not None:
        _write(html, report)
    if not as_json:
        click.echo(text(report))
    if as_json or not sys.stdout.isatty():  # on a terminal it would push the table out of sight
        click.echo(json.dumps(report, ensure_ascii=False, allow_nan=False))
    click.get_current_context().exit(CODES[report["verdict"]])


def _engine(
    model: str,
    drafter: str | None,
    policy: str | None,
    rule: str | None,
    allow_lossy: bool,
    prompts: Path | None,
    limit: int | None,
    options: dict[str, Any],
    tokens: int | None,
    alpha: float,
    batch: int,
    threads: int | None,
    rows: int | None,
) -> dict[str, Any]:
    from paceline.audit import local
    from paceline.audit.subject import is_table, self_check_settings

    table = is_table(model)
    given = any(value not in (None, (), False) for name, value in options.items() if name not in FREE)
    params = _params(options, TABLE_LENGTH if table else LENGTH)
    return local.run(
        model=model,
        rules=split_drafters(rule) if rule else None if table else ["match"],
        drafters=split_drafters(drafter) if drafter else None if table else [DEFAULT_DRAFTER],
        policy=policy or ("fixed" if table else DEFAULT_POLICY),
        prompts=prompts,
        limit=limit,
        settings=self_check_settings(params.max_tokens) if table and not given else [params],
        plan=local.Plan(tokens, batch, alpha, params.seed or 0),
        allow_lossy=allow_lossy,
        threads=threads,
        rows=rows,
        note=note,
    )


def _server(
    url: str,
    model: str | None,
    drafter: str | None,
    policy: str | None,
    rule: str | None,
    rows: int | None,
    prompts: Path | None,
    limit: int | None,
    options: dict[str, Any],
    tokens: int | None,
    alpha: float,
) -> dict[str, Any]:
    from paceline.audit import server

    set_here = [
        name for name, value in options.items() if value not in (None, (), False) and name not in FREE
    ]
    given = (("rows", rows), ("rule", rule), ("drafter", drafter), ("policy", policy))
    set_here += [name for name, spec in given if spec]
    if set_here:
        raise ConfigError(
            f"--{set_here[0].replace('_', '-')} does not go with --url: a server is audited at temperature 1 "
            "with no other control, for only then do its log-probabilities say how it draws"
        )
    return server.run(
        url=url,
        model=model,
        prompts=prompts,
        limit=limit,
        params=_params(options, LENGTH),
        tokens=tokens or server.TOKENS,
        alpha=alpha,
        note=note,
    )


def _params(options: dict[str, Any], length: int) -> SamplingParams:
    options["max_tokens"] = options["max_tokens"] or length
    options["seed"] = options["seed"] or 0
    options["logprobs"] = 1  # answers are compared with theirs
    return sampling_params(options)


def _write(path: Path, report: dict[str, Any]) -> None:
    from paceline.audit.page import page
    from paceline.models.cache import write_atomically

    try:
        with write_atomically(path) as file:
            file.write(page(report).encode())
    except OSError as error:
        raise ConfigError(f"--html {path}: {error.strerror or error}") from None
