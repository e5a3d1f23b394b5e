"""`paceline train data`: the command line of paceline.train.answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from time import perf_counter

import click

from paceline.cli.help import examples
from paceline.cli.options import model_option
from paceline.errors import ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@click.command(
    epilog=examples(
        "paceline train data answers/ --prompts prompts.jsonl",
        "paceline train data answers/ --invent 5000 --temperature 0.7 --answers 2",
        "paceline train data answers/ --prompts prompts.jsonl --max-tokens-total 10000000 --no-states",
        "paceline train data own/ --prompts prompts.jsonl --answered-by drafter/",
        "paceline train data answers/ --model model.gguf --prompts prompts.jsonl --disk-limit 20G",
    )
)
@click.argument("folder", type=click.Path(path_type=Path))
@model_option
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='JSON lines with "prompt", or "messages" of a conversation. [default: the model invents prompts]',
)
@click.option(
    "--invent",
    type=int,
    default=1000,
    show_default=True,
    help="Prompts that the model invents, without --prompts.",
)
@click.option(
    "--answered-by",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A draft model that answers in the model's place, as `paceline train run --arch draft` writes it; "
    "the model reads its answers. [default: the model answers]",
)
@click.option("--answers", type=int, default=1, show_default=True, help="Answers to each prompt.")
@click.option(
    "--temperature",
    "temperatures",
    type=float,
    multiple=True,
    default=(0.0, 1.0),
    show_default=True,
    help="Of the answers, which take several in turn. Repeatable.",
)
@click.option(
    "--max-tokens", type=int, default=512, show_default=True, help="An answer has at most so many tokens."
)
@click.option(
    "--max-prompt-tokens", type=int, default=512, show_default=True, help="Leave out longer prompts."
)
@click.option(
    "--max-tokens-total", type=int, metavar="N",
    help="End once there are so many tokens, prompts and answers. [default: when all prompts are answered]",
)  # fmt: skip
@click.option("--disk-limit", metavar="SIZE", help="End before there are more bytes, as in 20G.")
@click.option(
    "--states/--no-states",
    default=True,
    show_default=True,
    help="Keep the hidden states, or leave it to training to compute them from the answers anew.",
)
@click.option(
    "--taps",
    metavar="N,N,N",
    help="The layers, counted from 1, whose output is kept. [default: 2, half of all, all but 3]",
)
@click.option(
    "--shard-tokens", type=int, default=65536, show_default=True, help="Tokens after which a file is whole."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same data.")
@click.option("--batch", type=int, default=32, show_default=True, help="Answers that grow at once.")
@click.option("--threads", type=int, help="Threads of a pass. [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    folder: Path,
    model: str,
    prompts: Path | None,
    invent: int,
    answered_by: Path | None,
    answers: int,
    temperatures: tuple[float, ...],
    max_tokens: int,
    max_prompt_tokens: int,
    max_tokens_total: int | None,
    disk_limit: str | None,
    states: bool,
    taps: str | None,
    shard_tokens: int,
    seed: int,
    batch: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Let a model answer prompts, and keep tokens and hidden states in FOLDER to train drafters on.

    The same command goes on where it was interrupted, and the data is the same as without interruption.
    """  # fmt: skip
    from click.core import ParameterSource

    from paceline.bench.progress import progress_bar
    from paceline.models.cache import sha256_of
    from paceline.train import answers as data
    from paceline.train.dataset import Answer
    from paceline.train.speaker import Speaker

    if prompts is not None:
        source_of_invent = click.get_current_context().get_parameter_source("invent")
        if source_of_invent is not ParameterSource.DEFAULT:
            raise click.UsageError("--prompts and --invent exclude each other")
    elif invent < 1:
        raise ConfigError(f"invent must be at least 1, got {invent}")
    limits = data.Limits(tokens=max_tokens_total, bytes=None if disk_limit is None else _size(disk_limit))
    chosen = None if taps is None else _taps(taps)
    longest = max_tokens + max_prompt_tokens
    source = data.Source(model, chosen, batch=batch, longest=longest, threads=threads)
    speaker = None
    if answered_by is not None:
        speaker = Speaker(answered_by, source.target, source.tokenizer, batch=batch, longest=longest)
    started = perf_counter()
    with progress_bar() as progress:
        if prompts is None:
            task = progress.add_task("Inventing prompts", total=invent)
            prompts = data.invent_prompts(folder, source, invent, seed, lambda: progress.advance(task))
        try:
            digest = sha256_of(prompts)
        except OSError as error:
            raise ConfigError(f"prompts {prompts}: {error.strerror or error}") from None
        recipe = data.Recipe(
            prompts_sha256=digest,
            answers=answers,
            temperatures=temperatures,
            max_tokens=max_tokens,
            max_prompt_tokens=max_prompt_tokens,
            shard_tokens=shard_tokens,
            seed=seed,
            answered_by=speaker.sha256 if speaker else "",
        )
        task = progress.add_task("Tokens", total=max_tokens_total)
        made = 0

        def advance(answer: Answer) -> None:
            nonlocal made
            made += len(answer.tokens)
            progress.advance(task, len(answer.tokens))

        manifest = data.make(
            folder,
            source,
            prompts,
            recipe,
            states=states,
            limits=limits,
            advance=advance,
            speaker=speaker,
        )
    seconds = perf_counter() - started
    summary = {
        "folder": str(folder),
        "answers": sum(shard.answers for shard in manifest.shards),
        "tokens": manifest.tokens,
        "answer_tokens": sum(shard.answer_tokens for shard in manifest.shards),
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "new_tokens": made,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(made / seconds, 1),
    }
    if as_json:
        click.echo(json.dumps(summary))
        return
    for key, value in summary.items():
        click.echo(f"{key:<17} {value}")


def _taps(text: str) -> list[str]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(f"--taps: found {text!r}, expected numbers of layers, such as 2,15,27")
    return [f"hidden.{int(number)}" for number in text.split(",")]


def _size(text: str) -> int:
    """Bytes, from a number with or without K, M, G or T."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    if match is None:
        raise ConfigError(f"--disk-limit: found {text!r}, expected a size such as 500M or 20G")
    return int(float(match[1]) * _UNITS[match[2]])
