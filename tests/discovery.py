"""The rules and drafters, found by listing their folders."""

from __future__ import annotations

import atexit
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from paceline import drafters
from paceline.core import Drafter, Rule, TargetInfo
from paceline.rules import load, names
from paceline.stores.datastore import KIND, Datastore
from paceline.stores.token_file import TokenFile

RULES: dict[str, Rule] = {name: load(name, allow_lossy=True) for name in names()}
"""{name: rule}, with its own settings."""


def drafter(spec: str, info: TargetInfo, text: Sequence[int] = ()) -> Drafter:
    """The drafter that `spec` describes, with the file that it cannot do without: a datastore of this text,
    or of random tokens."""
    if spec.partition(":")[0] == "datastore":
        separator = "," if ":" in spec else ":"
        spec = f"{spec}{separator}path={_datastore(info, tuple(text))}"
    return drafters.load(spec, info)


@cache
def _datastore(info: TargetInfo, text: tuple[int, ...]) -> Path:
    rng = random.Random(1)
    tokens = text or [rng.randrange(info.vocab_size) for _ in range(3000)]
    path = _folder() / f"{len(list(_folder().iterdir()))}.pls"
    arrays = Datastore.index(np.array(tokens, np.int32), info.vocab_size).arrays
    TokenFile(KIND, info.vocabulary, info.name, {"files": 1}, arrays).write(path)
    return path


@cache
def _folder() -> Path:
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)
