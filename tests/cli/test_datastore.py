"""`paceline datastore` from the outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_generate import one_line_error

Paceline = Callable[..., Any]


@pytest.fixture
def model(write_gguf: Any) -> Path:
    return Path(write_gguf())


def test_a_datastore_is_made_and_shown(paceline: Paceline, model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\na dog\n" * 10)
    (tmp_path / "b.txt").write_text("a bird")
    path = tmp_path / "s.pls"
    texts = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    made = paceline("datastore", "build", *texts, "--model", str(model), "-o", str(path))
    assert made.code == 0, made.err
    assert made.out == ""
    record = json.loads(paceline("datastore", "info", str(path), "--json").out)
    assert record["texts"] == 2
    assert record["tokens"] == 126, "this vocabulary has a token for each of these characters"
    assert f"{record['tokens']} tokens of 2 texts" in made.err
    assert "texts       2" in paceline("datastore", "info", str(path)).out


def test_bad_input_is_one_line_and_writes_nothing(paceline: Paceline, model: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "s.pls", tmp_path / "a.txt"

    def build(*files: str) -> str:
        message = one_line_error(
            paceline("datastore", "build", *files, "--model", str(model), "-o", str(path))
        )
        assert not path.exists()
        return message

    assert "no.txt: No such file" in build(str(tmp_path / "no.txt"))
    assert "`paceline train data` makes data sets" in build(str(tmp_path))
    text.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in build(str(text))
    text.write_text("")
    assert "at least two tokens" in build(str(text))
    assert "Missing argument" in build()
    assert "is no datastore" in one_line_error(paceline("datastore", "info", str(model)))
