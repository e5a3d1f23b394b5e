"""Prompt files: the one that comes along, and what is said about bad ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from paceline.bench.prompts import Prompt, choose, load, spread
from paceline.errors import ConfigError


def test_the_prompts_that_come_along_are_eight_of_each_of_fourteen_kinds() -> None:
    prompts = load()
    counts = Counter(prompt.category for prompt in prompts)
    assert len(counts) == 14
    assert set(counts.values()) == {8}
    turns = [turn for prompt in prompts for turn in prompt.turns]
    assert len(set(turns)) == len(turns) > len(prompts), "some have several turns, none comes twice"
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert all(len(prompt.text) > 2400 for prompt in prompts if prompt.category == "long")


def test_without_a_limit_a_run_takes_two_of_each_kind_that_comes_along_and_all_of_a_file(
    tmp_path: Path,
) -> None:
    assert set(Counter(prompt.category for prompt in choose(None, None)).values()) == {2}
    assert len(choose(None, 112)) == 112
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"category": "a", "turns": ["{n}"]}}\n' for n in range(9)))
    assert len(choose(file, None)) == 9
    assert len(choose(file, 2)) == 2


def test_a_limit_is_spread_over_the_categories_and_keeps_the_order() -> None:
    prompts = [Prompt(str(n), category, (str(n),)) for n, category in enumerate("aaaaabbc")]
    assert [prompt.id for prompt in spread(prompts, 5)] == ["0", "1", "5", "6", "7"]
    assert spread(prompts, 99) == prompts


def test_all_turns_are_taken_and_other_keys_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"question_id": 81, "category": "writing", "turns": ["one", "two"], "reference": []}\n\n'
    )
    assert load(file) == [("81", "writing", ("one", "two"))]


def test_files_of_humaneval_and_gsm8k_are_known_by_their_fields(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"task_id": "HumanEval/0", "prompt": "def f():\\n", "entry_point": "f", "test": ""}\n'
        '{"question": "How many?", "answer": "#### 3"}\n'
    )
    assert load(file) == [("HumanEval/0", "humaneval", ("def f():\n",)), ("2", "gsm8k", ("How many?",))]


def test_a_prompt_that_comes_again_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"category": "a", "turns": ["x"]}\n{"category": "b", "turns": ["x"]}\n')
    assert load(file) == [("1", "a", ("x",))]


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
        (b'{"category": "a", "turns": []}', '"turns" is [], expected a list of texts'),
        (b'{"category": "a", "turns": ["  "]}', '"turns" is ["  "]'),
        (b'{"category": "a", "turns": "x"}', '"turns" is "x"'),
        (b'{"category": "a", "turns": ["x", 3]}', '"turns" is ["x", 3]'),
        (b'{"task_id": "a", "prompt": 3}', '"prompt" is 3, expected a text'),
        (b'{"question": " ", "answer": "3"}', '"question" is " ", expected a text'),
        (b'{"text": "x"}', 'found the fields ["text"], expected "category" and "turns"'),
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
