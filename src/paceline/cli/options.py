"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from paceline import drafters, policies, rules
from paceline.errors import ConfigError
from paceline.grammar import Grammar
from paceline.sampling import SamplingParams

if TYPE_CHECKING:
    from paceline.engine import Engine
    from paceline.models.tokenizer import Tokenizer

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_DRAFTER = "auto"
DEFAULT_POLICY = "throughput"

_CONTROL_CHARACTERS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}, "\ufffd")

_SAMPLING: tuple[tuple[str, str, Any, str], ...] = (
    ("temperature", "--temperature", float, "0 always takes the likeliest token."),
    ("top_k", "--top-k", int, "Draw from the K likeliest tokens; 0 draws from all."),
    ("top_p", "--top-p", float, "Draw from the likeliest tokens that together have this probability."),
    ("min_p", "--min-p", float, "Drop tokens less likely than this fraction of the likeliest."),
    ("repetition_penalty", "--repetition-penalty", float, "Above 1: tokens of prompt and answer again less."),
    ("presence_penalty", "--presence-penalty", float, "Taken off tokens that the answer holds."),
    ("frequency_penalty", "--frequency-penalty", float, "Taken off once per occurrence in the answer."),
    ("min_tokens", "--min-tokens", int, "The answer does not end before so many tokens."),
    ("max_tokens", "--max-tokens", int, "The answer has at most so many tokens."),
    ("seed", "--seed", int, "The same seed gives the same answer."),
)
_REPEATED: tuple[tuple[str, str, Any, str, str], ...] = (
    ("logit_bias", "--logit-bias", str, "ID=NUMBER", "Add a number to a token's logit. Repeatable."),
    ("bad_words", "--bad-word", str, "TEXT", "Keep this out of the answer. Repeatable."),
    ("stop", "--stop", str, "TEXT", "End the answer where this text comes up. Repeatable."),
    ("stop_token_ids", "--stop-token-id", int, "ID", "End the answer at this token. Repeatable."),
)
_GRAMMARS: tuple[tuple[str, str, str | None, str], ...] = (
    ("json_object", "--json-object", None, "Answer with a JSON object."),
    ("json_schema", "--json-schema", "FILE|JSON", "Answer with JSON that this schema describes."),
    ("regex", "--regex", "PATTERN", "Answer with a text that this regular expression matches as a whole."),
    ("lark", "--grammar", "FILE", 'Answer with a text of this Lark grammar; "-" is stdin.'),
)


def sampling_options(function: F, shown: Mapping[str, str] | None = None) -> F:
    """The fields of SamplingParams as options, but for `logprobs`; the defaults shown are the dataclass's
    own, or those of `shown`."""
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)} | {
        "seed": "random"
    }
    defaults |= shown or {}
    decorators = [
        click.option(flag, name, type=kind, help=f"{text} [default: {defaults[name]}]")
        for name, flag, kind, text in _SAMPLING
    ]
    decorators += [
        click.option(flag, name, type=kind, metavar=metavar, multiple=True, help=text)
        for name, flag, kind, metavar, text in _REPEATED
    ]
    decorators += [
        click.option(flag, name, is_flag=metavar is None, metavar=metavar, help=text)
        for name, flag, metavar, text in _GRAMMARS
    ]
    decorators.append(
        click.option("--ignore-eos", is_flag=True, help="Go on where the model would end its answer.")
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def sampling_params(options: dict[str, Any]) -> SamplingParams:
    """The parameters that `sampling_options` collected, taken out of `options`. Raises ConfigError."""
    chosen = {name: options.pop(name) for name, *_ in (*_SAMPLING, *_REPEATED)}
    chosen["logit_bias"] = dict(map(_bias, chosen["logit_bias"]))
    chosen["bad_words"] = tuple(map(typed, chosen["bad_words"]))
    chosen["ignore_eos"] = options.pop("ignore_eos")
    chosen["logprobs"] = options.pop("logprobs", None)
    chosen["grammar"] = _grammar({name: options.pop(name) for name, *_ in _GRAMMARS})
    return SamplingParams(**{name: value for name, value in chosen.items() if value is not None})


def _grammar(options: dict[str, Any]) -> Grammar | None:
    given = {name: value for name, value in options.items() if value}
    if len(given) > 1:
        flags = [flag for name, flag, *_ in _GRAMMARS if name in given]
        raise ConfigError(f"{' and '.join(flags)} exclude each other")
    for name, value in given.items():
        if name == "json_object":
            return Grammar.json_object()
        if name == "regex":
            return Grammar.regex(typed(value))
        if name == "lark":
            return Grammar.lark(read_text(value, "grammar"))
        inline = value.lstrip().startswith("{")
        return Grammar.json_schema(typed(value) if inline else read_text(value, "JSON schema"))
    return None


def _bias(text: str) -> tuple[int, float]:
    token, _, number = text.partition("=")
    try:
        return int(token), float(number)
    except ValueError:
        raise ConfigError(f"--logit-bias: found {text!r}, expected ID=NUMBER, such as 42=-100") from None


def model_option(function: F) -> F:
    """--model."""
    return click.option(
        "--model",
        default=DEFAULT_MODEL,
        envvar="PACELINE_MODEL",
        metavar="NAME|FILE",
        show_default=True,
        show_envvar=True,
        help="A name from `paceline models list`, a GGUF file, or a folder of safetensors (paceline[torch]).",
    )(function)


def policy_option(default: str = DEFAULT_POLICY) -> Callable[[F], F]:
    """--policy."""
    return click.option(
        "--policy",
        default=default,
        metavar="NAME[:OPT=VAL,...]",
        show_default=True,
        help=f"What decides how much is drafted: {', '.join(policies.names())}."
        " throughput drafts what pays on this machine, down to nothing.",
    )


rows_option = click.option(
    "--rows",
    type=int,
    metavar="N",
    help="Of a folder: call the model with exactly N rows, which makes answers bit-exact (docs/torch.md)."
    " [default: any number]",
)


def engine_options(function: F) -> F:
    """Options for `make_engine`."""
    for decorate in (
        click.option("--context", type=int, help="Tokens that prompt and answer may have together."
                     " [default: what the model was made for]"),
        rows_option,
        click.option("--threads", type=int, help="Threads of a pass. [default: one per core]"),
        policy_option(),
        click.option("--drafter", default=DEFAULT_DRAFTER, metavar="NAME[:OPT=VAL,...]", show_default=True,
                     help=f"What proposes tokens: {', '.join(drafters.names())}, or several, as in"
                          " suffix+ngram. It changes the speed, never the answer."),
        click.option("--allow-lossy", is_flag=True, help="Allow a rule that gives other answers than the"
                     " target's own."),
        click.option("--rule", default="match", metavar="NAME[:OPT=VAL,...]", show_default=True,
                     help=f"What decides which drafted tokens are kept: {', '.join(rules.names())}."
                          " With match, answers are plain decoding's token for token."),
        model_option,
    ):  # fmt: skip
        function = decorate(function)
    return function


def make_engine(
    model: str,
    drafter: str,
    threads: int | None,
    context: int | None,
    rule: str = "match",
    allow_lossy: bool = False,
    policy: str = DEFAULT_POLICY,
    rows: int | None = None,
) -> Engine:
    """The engine that the options ask for; a known model is fetched first if it is not here."""
    from paceline.core import Promise
    from paceline.engine import Engine

    drafter, policy = tuned(model, threads, rule, drafter, policy)
    engine = Engine.from_pretrained(
        model,
        drafter=drafter,
        rule=rule,
        policy=policy,
        allow_lossy=allow_lossy,
        threads=threads,
        context=context,
        rows=rows,
    )
    if engine.rule.promise is Promise.LOSSY:
        click.echo(f"Rule {rule} is lossy: these are not the target's own answers.", err=True)
    return engine


def tuned(model: str, threads: int | None, rule: str, drafter: str, policy: str) -> tuple[str, str]:
    """Drafter and policy: as the user typed them; where neither was typed, what `paceline tune` chose."""
    from click.core import ParameterSource

    from paceline.bench.tuned import read

    context = click.get_current_context()
    given = [
        context.get_parameter_source(name) is not ParameterSource.DEFAULT for name in ("drafter", "policy")
    ]
    if rule != "match" or any(given):
        return drafter, policy
    profile = read(model, threads)
    if profile is None:
        return drafter, policy
    click.secho(
        f"tuned: drafter {profile.drafter}, policy {profile.policy} ({profile.why})", dim=True, err=True
    )
    return profile.drafter, profile.policy


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The tokenizer of an engine that `make_engine` made."""
    return cast("Tokenizer", engine.tokenizer)


def read_text(path: str, what: str) -> str:
    """The text of a file, or of stdin for "-". Raises ConfigError."""
    shown = "stdin" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {shown}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{what} {shown}: {error.strerror or error}") from None


def typed(argument: str) -> str:
    """An argument as the UTF-8 text it was typed as, even where the locale says otherwise."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def terminal_safe(text: str) -> str:
    """The text without characters that would command a terminal, when stdout is one."""
    if not sys.stdout.isatty():
        return text
    return text.translate(_CONTROL_CHARACTERS)
