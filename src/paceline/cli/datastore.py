"""`paceline datastore`: an index of the user's own files, for the drafter of that name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from paceline.cli.help import examples
from paceline.cli.options import model_option, read_text

CUT = 1 << 16
"""Characters that are cut into tokens at once, up to the next end of a line."""


@click.group(
    epilog=examples(
        "paceline datastore build src/*.py docs/*.md --model smollm2-135m -o project.pls",
        "paceline datastore info project.pls",
        "paceline generate --drafter datastore:path=project.pls 'Write a test for core.py.'",
    )
)
def command() -> None:
    """Make and inspect datastores: texts of your own to draft from.

    A datastore holds token ids, so it serves the models that share the tokenizer it was made with.
    """


@command.command(
    epilog=examples(
        "paceline datastore build notes.txt -o notes.pls",
        "paceline datastore build src/*.py --model gemma3-270m --output project.pls",
    )
)
@click.argument("files", nargs=-1, required=True, metavar="FILES...")
@model_option
@click.option("-o", "--output", required=True, metavar="PATH", help="Where the datastore is written.")
def build(files: tuple[str, ...], model: str, output: str) -> None:
    """Make a datastore of text FILES. A file that is there already is replaced once the new one is whole.

    Takes about 40 bytes of memory per token while it sorts, and 8 bytes per token on disk.
    """  # fmt: skip
    import numpy as np

    from paceline.bench.progress import progress_bar
    from paceline.models.gguf_file import read_gguf
    from paceline.models.registry import resolve
    from paceline.models.tokenizer import Tokenizer
    from paceline.models.vocabulary import fingerprint
    from paceline.stores.datastore import BOUNDARY, KIND, ROUNDS, Datastore
    from paceline.stores.token_file import TokenFile

    texts = [read_text(file, "text") for file in files]
    checkpoint = read_gguf(resolve(model))
    tokenizer = Tokenizer(checkpoint.tokenizer)
    with progress_bar() as progress:
        task = progress.add_task("Reading", total=sum(map(len, texts)))
        tokens: list[int] = []
        for text in texts:
            for piece in _pieces(text):
                tokens += tokenizer.encode_part(piece)
                progress.advance(task, len(piece))
            tokens.append(BOUNDARY)
        task = progress.add_task("Sorting", total=ROUNDS)
        store = Datastore.index(
            np.array(tokens, np.int32), tokenizer.vocab_size, lambda: progress.advance(task)
        )
    TokenFile(
        kind=KIND,
        vocabulary=fingerprint(tokenizer.to_json()),
        model=checkpoint.config.name,
        notes={"files": len(files), "characters": sum(map(len, texts))},
        arrays=store.arrays,
    ).write(Path(output))
    click.echo(f"{output}: {len(tokens) - len(files)} tokens of {len(files)} files", err=True)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end with a line, or are its last."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + CUT) + 1 or len(text)
        yield text[start:end]
        start = end


@command.command(
    epilog=examples("paceline datastore info project.pls", "paceline datastore info project.pls --json")
)
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: str, as_json: bool) -> None:
    """Show what a datastore holds, after checking all of it."""
    from paceline.stores.datastore import KIND
    from paceline.stores.token_file import TokenFile

    file = TokenFile.read(Path(path), KIND)
    record = {
        "file": path,
        "bytes": Path(path).stat().st_size,
        "model": file.model,
        "vocabulary": file.vocabulary,
        "tokens": len(file.arrays["tokens"]) - file.notes["files"],
        **file.notes,
    }
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    for key, value in record.items():
        click.echo(f"{key:<11} {value}")
