"""`paceline datastore`: an index of the user's own files, for the drafter of that name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from paceline.cli.help import examples
from paceline.cli.options import model_option, read_text
from paceline.errors import TrainingError
from paceline.models.tokenizer import Tokenizer

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
    """Make and inspect datastores: texts to draft from.

    A datastore holds token ids, so it serves the models that share the tokenizer it was made with.
    """


@command.command(
    epilog=examples(
        "paceline datastore build notes.txt -o notes.pls",
        "paceline datastore build src/*.py --model gemma3-270m --output project.pls",
        "paceline train data answers/ --no-states && paceline datastore build answers/ -o answers.pls",
    )
)
@click.argument("files", nargs=-1, required=True, metavar="FILES...")
@model_option
@click.option("-o", "--output", required=True, metavar="PATH", help="Where the datastore is written.")
def build(files: tuple[str, ...], model: str, output: str) -> None:
    """Make a datastore of text FILES, or of folders that `paceline train data` wrote: the model's own
    answers, without the prompts. A file that is there already is replaced once the new one is whole.

    Takes about 40 bytes of memory per token while it sorts, and 8 bytes per token on disk.
    """  # fmt: skip
    from paceline.bench.progress import progress_bar
    from paceline.models.gguf_file import read_gguf
    from paceline.models.registry import resolve
    from paceline.models.vocabulary import fingerprint
    from paceline.stores.datastore import KIND, ROUNDS, Datastore
    from paceline.stores.token_file import TokenFile

    checkpoint = read_gguf(resolve(model))
    tokenizer = Tokenizer(checkpoint.tokenizer)
    sources = [
        _answers(Path(file), fingerprint(tokenizer.to_json()))
        if Path(file).is_dir()
        else _text(read_text(file, "text"), tokenizer)
        for file in files
    ]
    texts = sum(source.texts for source in sources)
    with progress_bar() as progress:
        task = progress.add_task("Reading", total=sum(source.size for source in sources))
        advance = partial(progress.advance, task)
        tokens = np.concatenate([part for source in sources for part in source.read(advance)])
        task = progress.add_task("Sorting", total=ROUNDS)
        store = Datastore.index(tokens, tokenizer.vocab_size, lambda: progress.advance(task))
    TokenFile(
        kind=KIND,
        vocabulary=fingerprint(tokenizer.to_json()),
        model=checkpoint.config.name,
        notes={"texts": texts},
        arrays=store.arrays,
    ).write(Path(output))
    click.echo(f"{output}: {len(tokens) - texts} tokens of {texts} texts", err=True)


class _Source(NamedTuple):
    """Texts as tokens.

    size   how much there is to read, in whatever unit
    texts  how many there are
    read   from a function to be told how much was read to the tokens, a BOUNDARY behind each text
    """

    size: int
    texts: int
    read: Callable[[Callable[[int], object]], Iterator[NDArray[np.int32]]]


def _text(text: str, tokenizer: Tokenizer) -> _Source:
    """One text, in pieces that end with a line or are its last."""
    from paceline.lookups.reference import BOUNDARY

    def read(advance: Callable[[int], object]) -> Iterator[NDArray[np.int32]]:
        start = 0
        while start < len(text):
            end = text.find("\n", start + CUT) + 1 or len(text)
            yield np.array(tokenizer.encode_part(text[start:end]), np.int32)
            advance(end - start)
            start = end
        yield np.array([BOUNDARY], np.int32)

    return _Source(len(text), 1, read)


def _answers(folder: Path, vocabulary: str) -> _Source:
    """The answers of a data set. Raises TrainingError if the folder holds none, one of other tokens, or one
    that the model did not answer."""
    from paceline.lookups.reference import BOUNDARY
    from paceline.train.dataset import Manifest

    manifest = Manifest.read(folder)
    if manifest.target.vocabulary != vocabulary:
        raise TrainingError(f"{folder}: was answered by {manifest.target.model}, which has other tokens")
    if manifest.recipe.get("answered_by"):
        raise TrainingError(f"{folder}: was answered by a draft model, not by {manifest.target.model}")
    manifest.check_files(folder)

    def read(advance: Callable[[int], object]) -> Iterator[NDArray[np.int32]]:
        for place, held in enumerate(manifest.shards):
            for answer in manifest.read_answers(folder, place):
                yield np.append(answer, np.int32(BOUNDARY))
            advance(held.tokens)

    return _Source(manifest.tokens, sum(held.answers for held in manifest.shards), read)


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
        "tokens": len(file.arrays["tokens"]) - file.notes["texts"],
        **file.notes,
    }
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    for key, value in record.items():
        click.echo(f"{key:<11} {value}")
