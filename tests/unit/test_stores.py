"""Files of token ids, the index of a datastore, and answers kept on disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from paceline.core import TargetInfo
from paceline.errors import TokenFileError
from paceline.lookups.reference import BOUNDARY
from paceline.stores import answers as answers_file
from paceline.stores.answers import AnswersFile
from paceline.stores.datastore import KIND, Datastore
from paceline.stores.token_file import DamagedFile, TokenFile

OWN = TargetInfo("own", 9, 512, 512, 16, frozenset(), vocabulary="1234")
OTHER = TargetInfo("other", 9, 512, 512, 16, frozenset(), vocabulary="5678")


def text(seed: int, length: int, vocab_size: int = 4) -> np.ndarray:
    """Few different tokens, so that long matches come up, with boundaries between."""
    rng = random.Random(seed)
    return np.array([rng.choice([*range(vocab_size)] * 4 + [BOUNDARY]) for _ in range(length)], np.int32)


def write(path: Path, tokens: np.ndarray | None = None) -> Path:
    arrays = Datastore.index(text(1, 300) if tokens is None else tokens, 9).arrays
    TokenFile(KIND, OWN.vocabulary, OWN.name, {"files": 1}, arrays).write(path)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "a.pls")
    file = TokenFile.read(path, KIND)
    assert (file.kind, file.vocabulary, file.model, file.notes) == (KIND, "1234", "own", {"files": 1})
    assert file.arrays["tokens"].tolist() == text(1, 300).tolist()
    assert not file.arrays["order"].flags.writeable
    assert [one.name for one in path.parent.iterdir()] == ["a.pls"], "nothing is left over"


def test_a_change_or_a_cut_anywhere_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pls")
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(TokenFileError, match=r"^datastore .*a\.pls: (is|has)") as caught:
            TokenFile.read(path, KIND)
        assert "\n" not in str(caught.value)
        path.write_bytes(whole[:place])
        with pytest.raises(TokenFileError, match=r"is no datastore|is damaged or cut short"):
            TokenFile.read(path, KIND)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.pls: No such file or directory"),
        (b"", "is no datastore of Paceline's"),
        (b"some text that is longer than the start of a file of ours", "is no datastore of Paceline's"),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.pls"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenFileError, match=message):
        TokenFile.read(path, KIND)


def test_another_version_another_kind_and_another_tokenizer_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pls")
    with pytest.raises(TokenFileError, match="holds datastore, expected store of answers"):
        TokenFile.read(path, "store of answers")
    with pytest.raises(TokenFileError, match="made with the tokenizer of own, which is not that of other"):
        Datastore.load(path, OTHER)
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(TokenFileError, match="has version 2, this Paceline reads 1"):
        TokenFile.read(path, KIND)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenFileError, match=r"^datastore .*: (Not a directory|File exists)"):
        write(tmp_path / "file" / "a.pls")


def test_each_round_of_sorting_is_told() -> None:
    rounds: list[None] = []
    Datastore.index(text(1, 300), 9, lambda: rounds.append(None))
    assert len(rounds) == 4


@pytest.mark.parametrize("tokens", [[], [5], [5, BOUNDARY, 6]])
def test_a_text_without_two_tokens_in_a_row_is_refused(tokens: list[int]) -> None:
    with pytest.raises(TokenFileError, match="a text of at least two tokens"):
        Datastore.index(np.array(tokens, np.int32), 9)


def test_answers_come_back_oldest_first(tmp_path: Path) -> None:
    kept = [[1, 2, 3], [4], [5, 6]]
    file = AnswersFile(tmp_path / "a", OWN, lambda: kept)
    assert file.read() == []
    file.close()
    assert not (tmp_path / "a").exists(), "nothing was new"
    file.changed()
    assert not (tmp_path / "a").exists(), "saving waits"
    file.close()
    assert [answer for answer in AnswersFile(tmp_path / "a", OWN, list).read() if answer] == kept


def test_answers_are_saved_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_file, "SAVED_EVERY", 0.0)
    AnswersFile(tmp_path / "a", OWN, lambda: [[1, 2]]).changed()
    assert (tmp_path / "a").exists()


def test_damaged_answers_are_a_warning_and_those_of_another_tokenizer_stay_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a"
    first = AnswersFile(path, OWN, lambda: [[1, 2]])
    first.changed()
    first.close()
    whole = path.read_bytes()
    with pytest.raises(TokenFileError, match=r"store of answers .* made with the tokenizer of own"):
        AnswersFile(path, OTHER, list).read()
    path.write_bytes(whole[:-3])
    with pytest.warns(RuntimeWarning, match="damaged or cut short.*; starting without earlier answers$"):
        assert AnswersFile(path, OWN, list).read() == []
    path.write_bytes(b"my diary " * 20)
    with pytest.raises(TokenFileError, match="is no store of answers"):
        AnswersFile(path, OWN, list).read()
    assert issubclass(DamagedFile, TokenFileError)


def test_a_disk_that_takes_nothing_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = AnswersFile(tmp_path / "file" / "a", OWN, lambda: [[1]])
    file.changed()
    with pytest.warns(RuntimeWarning, match="answers were not kept"):
        file.close()
