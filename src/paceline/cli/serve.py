"""`paceline serve`: the HTTP server."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import click

from paceline import drafters, rules
from paceline.cli.help import examples
from paceline.cli.options import DEFAULT_DRAFTER, model_option, policy_option, rows_option, tuned
from paceline.errors import ConfigError

KEYS = "PACELINE_API_KEYS"
PACKAGES = ("msgspec", "prometheus_client", "starlette", "uvicorn")


@click.command(
    epilog=examples(
        "paceline serve",
        "paceline serve --model ./my-model.gguf --port 9000 --drafter auto --drafter ngram",
        "paceline serve --model table           # a tiny model that speaks nonsense, to try clients on",
        "paceline serve --host 0.0.0.0 --api-key-file keys.txt",
        "paceline serve --models models.toml    # several models, see docs/serving.md",
        "curl localhost:8000/health",
    )
)
@model_option
@click.option("--models", metavar="FILE", help="Several models, from a TOML file, instead of --model.")
@click.option(
    "--drafter",
    multiple=True,
    metavar="NAME[:OPT=VAL,...]",
    help=f"What proposes tokens: {', '.join(drafters.names())}, or several, as in suffix+ngram."
    f" Repeatable: requests choose, the first is the default. [default: {DEFAULT_DRAFTER}]",
)
@click.option(
    "--rule",
    default="match",
    metavar="NAME[:OPT=VAL,...]",
    show_default=True,
    help=f"What decides which drafted tokens are kept: {', '.join(rules.names())}."
    " With match, answers are plain decoding's token for token.",
)
@click.option(
    "--allow-lossy", is_flag=True, help="Allow a rule that gives other answers than the target's own."
)
@policy_option()
@click.option("--threads", type=int, help="Threads of a pass. [default: one per core]")
@click.option(
    "--context",
    type=int,
    help="Tokens that prompt and answer may have together. [default: what the model was made for]",
)
@rows_option
@click.option("--cache-tokens", type=int, help="Tokens that all requests together may have in the cache.")
@click.option("--max-batch", type=int, default=8, show_default=True, help="Requests that run at a time.")
@click.option(
    "--max-waiting",
    type=int,
    default=64,
    show_default=True,
    help="Requests that may wait beside those; more are answered with 429.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option("--socket", metavar="FILE", help="Listen on a unix socket instead.")
@click.option(
    "--api-key-file",
    metavar="FILE",
    help=f"API keys, one a line; also in the variable {KEYS}, separated by commas.",
)
@click.option("--insecure", is_flag=True, help="Allow a --host that other machines reach, without keys.")
@click.option("--strict", is_flag=True, help="Refuse unknown parameters instead of overlooking them.")
@click.option(
    "--drain-timeout",
    type=float,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="What answers in work have to finish when the server is told to end.",
)
@click.option("--vllm-metric-names", is_flag=True, help='Begin the names in /metrics with "vllm:".')
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    help="Send a span and times of each request to an OpenTelemetry collector, as http://localhost:4318.",
)
@click.option(
    "--log-level",
    type=click.Choice(["info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is logged on stderr, as JSON lines; never prompts or answers.",
)
def command(
    model: str,
    models: str | None,
    drafter: tuple[str, ...],
    rule: str,
    allow_lossy: bool,
    policy: str,
    threads: int | None,
    context: int | None,
    rows: int | None,
    cache_tokens: int | None,
    max_batch: int,
    max_waiting: int,
    host: str,
    port: int,
    socket: str | None,
    api_key_file: str | None,
    insecure: bool,
    strict: bool,
    drain_timeout: float,
    vllm_metric_names: bool,
    otlp_endpoint: str | None,
    log_level: str,
) -> None:
    """Answer OpenAI's HTTP interface: chat, completions, responses, streaming, JSON schemas, tools.

    Any client of OpenAI's works with the address http://HOST:PORT/v1. Drafting is chosen request by request
    and changes the speed, never the answer. Ctrl-C or SIGTERM lets answers in work finish; a second one
    ends at once.
    """  # fmt: skip
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise ConfigError(f'serving needs {", ".join(missing)}: pip install "paceline[serve]"')
    from paceline.serve import program, settings

    keys = settings.keys_of(None if api_key_file is None else Path(api_key_file), os.environ.get(KEYS))
    listening = program.Listening(
        host=host,
        port=port,
        socket=None if socket is None else Path(socket),
        keys=keys,
        insecure=insecure,
        strict=strict,
        drain_s=drain_timeout,
        metric_prefix="vllm:" if vllm_metric_names else "paceline:",
        otlp_endpoint=_collector(otlp_endpoint),
        log_level=log_level,
    )
    if models is not None:
        _only_models()
        served, memory = settings.read_models(Path(models))
    else:
        if not drafter:
            fastest, policy = tuned(model, threads, rule, DEFAULT_DRAFTER, policy)
            drafter = (fastest,)
        one = settings.model_settings(
            model=model,
            drafters=drafter,
            rule=rule,
            allow_lossy=allow_lossy,
            policy=policy,
            threads=threads,
            context=context,
            rows=rows,
            cache_tokens=cache_tokens,
            max_batch=max_batch,
            max_waiting=max_waiting,
        )
        served, memory = {settings.served_name(model): one}, None
    code = program.serve(served, memory, listening, lambda line: click.echo(line, err=True))
    click.get_current_context().exit(code)


def _collector(endpoint: str | None) -> str | None:
    """The address of a collector. Raises ConfigError if it is none, or without the packages to reach it."""
    if endpoint is not None:
        if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", endpoint):
            raise ConfigError(f"--otlp-endpoint must be as http://localhost:4318, got {endpoint!r}")
        try:
            distribution("opentelemetry-exporter-otlp-proto-http")
        except PackageNotFoundError:
            raise ConfigError('--otlp-endpoint needs pip install "paceline[otel]"') from None
    return endpoint


def _only_models() -> None:
    """Refuse options that --models says for each model."""
    context = click.get_current_context()
    for name in ("model", "drafter", "rule", "allow_lossy", "policy", "threads", "context", "rows",
                 "cache_tokens", "max_batch", "max_waiting"):  # fmt: skip
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} goes with --model; with --models, put it into the file"
            )
