"""Bad words: how they are spelled, and which tokens would complete one."""

from __future__ import annotations

import random

import pytest

from paceline.bad_words import BadWords, spell
from paceline.errors import ConfigError
from tests.cli.conftest import letters
from tests.toys import Letters
from tests.unit.test_tokenizer import sentencepiece


def test_text_is_spelled_with_and_without_a_space_before_it_and_ids_stay() -> None:
    tokenizer = letters()
    (b,), (space,) = tokenizer.encode("b"), tokenizer.encode(" ")
    assert spell(["b", (4, 5)], tokenizer) == ((b,), (space, b), (4, 5))
    assert spell([(1, 2)], None) == ((1, 2),)


def test_spellings_that_are_alike_or_empty_count_once_or_not_at_all() -> None:
    assert spell(["bc", "bc", "?"], Letters()) == ((1, 2),)


def test_the_start_token_and_the_space_of_a_tokenizers_own_are_no_part_of_a_word() -> None:
    tokenizer = sentencepiece()
    assert tokenizer.decode(tokenizer.encode("the")) == "the"
    inside, behind_a_space = spell(["the"], tokenizer)
    assert b"".join(map(tokenizer.piece, inside)) == b"the"
    assert b"".join(map(tokenizer.piece, behind_a_space)) == b" the"
    assert tokenizer.bos_id not in inside


def test_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="bad_words as text need a tokenizer"):
        spell(["a"], None)


def test_a_token_is_forbidden_exactly_where_it_would_complete_a_word_of_the_answer() -> None:
    rng = random.Random(3)
    for _ in range(300):
        words = [tuple(rng.randrange(3) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 4))]
        bad, answer = BadWords(words), []
        for _ in range(6):
            path = [rng.randrange(3) for _ in range(rng.randint(0, 3))]
            spoken = (*answer, *path)
            expected = {t for t in range(3) if any((*spoken, t)[-len(w) :] == w for w in words)}
            assert set(bad.after(path)) == expected
            tokens = [rng.randrange(3) for _ in range(rng.randint(0, 3))]
            bad.answered(tokens)
            answer += tokens
