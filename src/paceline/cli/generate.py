"""`paceline generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from paceline.cli.help import examples
from paceline.cli.options import (
    engine_options,
    make_engine,
    read_text,
    sampling_options,
    sampling_params,
    terminal_safe,
    tokenizer_of,
    typed,
)
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.engine import Engine
    from paceline.prompts import Prompt
    from paceline.results import Completion


@click.command(
    epilog=examples(
        'paceline generate "Why is the sky blue?"',
        "cat report.txt | paceline generate --system 'Summarise in two sentences.' --temperature 0",
        "paceline generate --raw --prompt-file story.txt --max-tokens 500 --seed 7",
        "paceline generate --drafter suffix:max_nodes=8 --stats 'Count to twenty.'",
        "paceline generate --json 'Hello' | jq .stats.tau",
        "paceline generate --n 3 --seed 1 'A name for a cat?'",
        "paceline generate --regex '(yes|no)' 'Is the sea salty?'",
        "paceline generate --json-schema person.json --bad-word Smith 'Invent a person.'",
        "paceline generate --prediction main.py --temperature 0 'Rename x to y in ...'",
        "paceline generate --logprobs 5 --json --max-tokens 1 'The capital of France is'",
    )
)
@click.argument("prompt", required=False)
@click.option("--prompt-file", metavar="FILE", help='Take the prompt from a file; "-" is stdin.')
@click.option(
    "--chat/--raw",
    "chat",
    default=None,
    help="Wrap the prompt in the model's chat format, or give it as it is."
    " [default: --chat where the model has such a format]",
)
@click.option("--system", metavar="TEXT", help="A system message before the prompt (with --chat).")
@click.option(
    "--prediction",
    metavar="FILE",
    help="What the answer will nearly be, as for edits: a text to draft from. Implies --drafter prediction.",
)
@engine_options
@sampling_options
@click.option(
    "--n",
    "count",
    type=int,
    default=1,
    metavar="N",
    show_default=True,
    help="Answers to give, each with a seed of its own; separated by a line of dashes.",
)
@click.option(
    "--logprobs",
    type=int,
    metavar="K",
    help="With --json: each token's log-probability, and the K likeliest tokens in its place.",
)
@click.option(
    "--stream/--no-stream", default=None, help="Print the answer while it grows. [default: on a terminal]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object with answer and figures, one per line."
)
@click.option("--stats", is_flag=True, help="Print figures on stderr at the end.")
def command(
    prompt: str | None,
    prompt_file: str | None,
    chat: bool | None,
    system: str | None,
    prediction: str | None,
    model: str,
    drafter: str,
    policy: str,
    rule: str,
    allow_lossy: bool,
    threads: int | None,
    context: int | None,
    rows: int | None,
    count: int,
    stream: bool | None,
    as_json: bool,
    stats: bool,
    **options: Any,
) -> None:
    """Answer PROMPT, from the argument, a file, or stdin."""  # fmt: skip
    if stream and as_json:
        raise click.UsageError("--stream and --json exclude each other")
    if stream and count != 1:
        raise click.UsageError("--stream and --n exclude each other")
    if options["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json")
    if prediction is not None:
        drafter = _predicting(drafter)
    params = sampling_params(options)
    predicted = None if prediction is None else read_text(prediction, "prediction")
    text = _prompt(prompt, prompt_file)
    system = None if system is None else typed(system)
    engine = make_engine(model, drafter, threads, context, rule, allow_lossy, policy, rows)
    question = _question(engine, text, chat, system)
    if stream or (stream is None and count == 1 and not as_json and sys.stdout.isatty()):
        completions = []
        for event in engine.stream(question, params, drafter, prediction=predicted):
            click.echo(terminal_safe(event.text), nl=False)
            completions = [event.finish] if event.finish else []
        click.echo()
    else:
        completions = engine.generate([question], params, drafter, prediction=predicted, n=count)
        for completion in completions:
            if as_json:
                click.echo(json.dumps(to_json(completion, model), ensure_ascii=False))
                continue
            if completion.index:
                click.echo("---")
            click.echo(terminal_safe(completion.text))
    for completion in completions:
        if completion.finish_reason in ("cancelled", "error"):
            click.echo(f"The answer is incomplete: {completion.stop_reason}", err=True)
        if stats:
            click.echo(figures(completion), err=True)


def _predicting(drafter: str) -> str:
    """The drafter for a prediction: the one that was named, if it takes one."""
    source = click.get_current_context().get_parameter_source("drafter")
    if source is ParameterSource.DEFAULT:
        return "prediction"
    if drafter.partition(":")[0] != "prediction":
        raise click.UsageError(
            f"--prediction is for --drafter prediction, got {drafter}; leave --drafter out"
        )
    return drafter


def _prompt(argument: str | None, file: str | None) -> str:
    if argument is not None and file is not None:
        raise click.UsageError("give the prompt as argument or with --prompt-file, not both")
    if argument is not None:
        text = typed(argument)
    elif file is not None:
        text = read_text(file, "prompt file")
    elif sys.stdin.isatty():
        raise click.UsageError("no prompt: give it as argument, with --prompt-file, or on stdin")
    else:
        text = read_text("-", "prompt on")
    if not text.strip():
        raise ConfigError("the prompt is empty")
    return text


def _question(engine: Engine, text: str, chat: bool | None, system: str | None) -> Prompt:
    if chat is None:
        chat = tokenizer_of(engine).has_chat_template
    if not chat:
        if system is not None:
            raise ConfigError("--system needs the chat format; leave out --raw, or take a model that has one")
        return text
    messages = [{"role": "system", "content": system}] if system is not None else []
    return [*messages, {"role": "user", "content": text}]


def to_json(completion: Completion, model: str) -> dict[str, Any]:
    """A completion as JSON, with its derived figures."""
    stats, timings = completion.stats, completion.timings
    record = {key: value for key, value in asdict(completion).items() if key != "request"}
    record["stats"] |= {"tau": stats.tau, "acceptance_rate": stats.acceptance_rate}
    seconds = timings.decode_s
    record["timings"]["tokens_per_second"] = _speed(stats.tokens - 1, seconds)
    return {"model": model, **record}


def figures(completion: Completion) -> str:
    """The figures of an answer on one line."""
    stats, timings = completion.stats, completion.timings
    return (
        f"{stats.tokens} tokens in {timings.prefill_s + timings.decode_s:.2f} s "
        f"({_speed(stats.tokens - 1, timings.decode_s):.0f} tokens/s after the first), "
        f"τ {stats.tau:.2f}, acceptance {stats.acceptance_rate:.0%}, drafter {completion.drafter}, "
        f"rule {completion.rule} ({completion.promise}), "
        f"seed {completion.seed}, prompt {completion.prompt_tokens} tokens, "
        f"ended by {completion.finish_reason}"
    )


def _speed(tokens: int, seconds: float) -> float:
    """Tokens per second; the first token comes out of the prefill and does not count."""
    return tokens / seconds if tokens > 0 and seconds > 0 else 0.0
