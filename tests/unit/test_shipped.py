"""The datastores that come with the package: whole, small, and found by their tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paceline import shipped
from paceline.drafters import load
from paceline.errors import TokenFileError
from paceline.lookups.reference import BOUNDARY
from paceline.mixture import Mixture
from paceline.stores.datastore import KIND, Datastore
from paceline.stores.token_file import TokenFile
from paceline.targets.table import TableTarget

LARGEST = 20_000_000
FILES = sorted(Path(shipped.__file__).parent.glob("*.pls"))


def test_there_is_one() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:8])
def test_it_is_small_whole_and_called_by_its_tokenizer(path: Path) -> None:
    assert path.stat().st_size <= LARGEST
    file = TokenFile.read(path, KIND)
    assert file.vocabulary == path.stem
    tokens, order = file.arrays["tokens"], file.arrays["order"]
    assert file.notes["texts"] == (tokens == BOUNDARY).sum() > 1000
    behind = order[(tokens[order] >= 0) & (tokens[order - 1] >= 0)]
    assert len(np.unique(behind)) == len(order), "each place once, none at the edge of a text"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:8])
def test_what_it_holds_is_found_in_it(path: Path) -> None:
    store = Datastore(**TokenFile.read(path, KIND).arrays)
    tokens = store.arrays["tokens"]
    for at in np.flatnonzero(tokens[1:2000] == BOUNDARY)[:3].tolist():
        ending = tokens[at - 8 : at][::-1].tolist()
        longest, place = store.places.matches(ending, 24)[0]
        assert longest == 8
        assert tokens[place - 8 : place].tolist() == tokens[at - 8 : at].tolist()


def test_it_is_found_by_its_tokens_and_by_no_others() -> None:
    info = TableTarget().info
    for path in FILES:
        assert shipped.find(replace(info, vocabulary=path.stem)) == path
        assert shipped.find(replace(info, vocabulary=path.stem[:-1] + "x")) is None
    assert shipped.find(replace(info, vocabulary="")) is None


def test_auto_drafts_from_it_unless_told_otherwise(tmp_path: Path) -> None:
    info = TableTarget().info
    fitting = replace(info, vocabulary=FILES[0].stem, vocab_size=49152)

    def parts(spec: str, fitting: object = fitting) -> set[str]:
        made = load(spec, fitting)  # type: ignore[arg-type]
        assert isinstance(made, Mixture)
        return {part.name for part in made._parts}

    assert parts("auto") == {"prediction", "suffix", "datastore"}
    assert parts("auto", info) == parts("auto:texts=none") == {"prediction", "suffix"}
    tokens = np.array([*range(10), BOUNDARY] * 3, np.int32)
    own = tmp_path / "own.pls"
    TokenFile(KIND, info.vocabulary, "table", {"texts": 3}, Datastore.index(tokens, 12).arrays).write(own)
    assert parts(f"auto:texts={own}", info) == {"prediction", "suffix", "datastore"}
    with pytest.raises(TokenFileError, match="was made with the tokenizer of table"):
        load(f"auto:texts={own}", fitting)
    with pytest.raises(TokenFileError, match="No such file"):
        load("auto:texts=nowhere.pls", info)
