"""Prompt files: the one that comes along, and what is said about bad ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from paceline.bench.prompts import load
from paceline.errors import ConfigError


def test_the_prompts_that_come_along_are_three_of_each_of_eight_kinds() -> None:
    counts = Counter(prompt.category for prompt in load())
    assert len(counts) == 8
    assert set(counts.values()) == {3}


def test_of_several_turns_the_first_is_taken_and_other_keys_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"question_id": 81, "category": "writing", "turns": ["one", "two"], "reference": []}\n\n'
    )
    assert load(file) == [("81", "writing", "one")]


def test_a_prompt_that_comes_again_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"category": "a", "turns": ["x"]}\n{"category": "b", "turns": ["x"]}\n')
    assert load(file) == [("1", "a", "x")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"category": "a", "turns": ["x"]}\n{"category": "a"', "line 2: is not JSON"),
        (b"\xff\n", "line 1: is not JSON"),
        (b"[" * 100_000, "line 1: is not JSON"),
        (b"[1]", "line 1: found [1], expected an object"),
        (b'{"turns": ["x"]}', '"category" is missing'),
        (b'{"category": 3, "turns": ["x"]}', '"category" is 3, expected a name'),
        (b'{"category": "a"}', '"turns" is missing'),
        (b'{"category": "a", "turns": []}', '"turns" is [], expected a list that starts with a text'),
        (b'{"category": "a", "turns": ["  "]}', '"turns" is ["  "]'),
        (b'{"category": "a", "turns": "x"}', '"turns" is "x"'),
    ],
)
def test_a_bad_file_is_named_with_its_line_and_what_was_expected(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.jsonl")
