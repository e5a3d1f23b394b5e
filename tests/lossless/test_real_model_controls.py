"""Grammars, bad words and log-probabilities of SmolLM2-135M: the same with every drafter."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from paceline.drafters import load
from paceline.engine import Engine
from paceline.grammar import Grammar
from paceline.results import Completion
from paceline.sampling import SamplingParams
from tests.real_model import target, tokenizer

pytestmark = pytest.mark.model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "occupation": {"enum": ["baker", "teacher", "train driver"]},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "favourite drinks": {"type": "array", "items": {"enum": ["tea", "coffee", "milk"]}, "maxItems": 2},
    },
    "required": ["name", "occupation", "age", "favourite drinks"],
    "additionalProperties": False,
}
DATES = r"(On (Monday|Tuesday|Wednesday|Friday), [0-9]{1,2} (January|February|March) 20[0-9]{2}[.] ){1,3}"
BAD = ("train", "Train", "rail", "the", " and", "sure")
SETTINGS: dict[str, dict[str, Any]] = {
    "schema": {"grammar": Grammar.json_schema(PERSON), "logprobs": 3, "max_tokens": 100},
    "object": {"grammar": Grammar.json_object(), "max_tokens": 40},
    "regex": {"grammar": Grammar.regex(DATES), "max_tokens": 40, "top_p": 0.9},
    "bad words": {"bad_words": BAD, "logprobs": 20, "max_tokens": 40},
    "all": {
        "grammar": Grammar.json_schema(PERSON), "bad_words": ("tea", '"tea'), "logprobs": 0,
        "repetition_penalty": 1.1, "top_k": 50, "max_tokens": 100,
    },
}  # fmt: skip
QUESTIONS = (
    "Invent a person and describe him as JSON.",
    "When does the next train leave?",
)
TEMPERATURES = (0, 1)


@cache
def work(setting: str) -> tuple[list[Any], list[SamplingParams], list[Completion]]:
    """Prompts, parameters and plain answers."""
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS for _ in TEMPERATURES]
    params = [
        SamplingParams(seed=seed, temperature=TEMPERATURES[seed % 2], **SETTINGS[setting])
        for seed in range(len(asked))
    ]
    return asked, params, answer("none", asked, params, 1)


def answer(drafter: str, asked: list[Any], params: list[SamplingParams], batch: int) -> list[Completion]:
    drafters = {drafter: load(drafter, target().info)}
    engine = Engine(
        target(), drafters, drafter=drafter, tokenizer=tokenizer(), max_batch=batch, share_prefixes=False
    )
    return engine.generate(asked, params)


@pytest.mark.parametrize(
    ("drafter", "setting", "batch"),
    [
        *(("suffix", setting, 3) for setting in SETTINGS),
        ("suffix", "all", 1),
        ("ngram", "all", 3),
        ("markov", "all", 3),
        ("markov", "bad words", 3),
    ],
)
def test_every_drafter_gives_the_plain_answers(drafter: str, setting: str, batch: int) -> None:
    asked, params, plain = work(setting)
    done = answer(drafter, asked, params, batch)
    for speculative, expected in zip(done, plain, strict=True):
        assert speculative.token_ids == expected.token_ids
        assert speculative.text == expected.text
        assert speculative.finish_reason == expected.finish_reason
        assert speculative.logprobs == expected.logprobs, "to the last bit"
    drafted = sum(c.stats.drafted for c in done)
    accepted = sum(c.stats.accepted for c in done)
    passes, tokens = sum(c.stats.passes for c in done), sum(c.stats.tokens for c in done)
    assert 0 < accepted < drafted
    if setting in ("schema", "regex", "all"):  # there the grammar leaves much without choice
        assert accepted > tokens / 4
    print(f"{drafter} {setting} batch {batch}: {accepted} of {drafted} accepted, tau {tokens / passes:.2f}")


def test_answers_to_a_schema_parse_and_fit_it() -> None:
    for setting in ("schema", "all"):
        _, _, plain = work(setting)
        whole = [completion for completion in plain if completion.finish_reason == "stop"]
        assert len(whole) >= 3
        for completion in whole:
            person = json.loads(completion.text)
            assert list(person) == PERSON["required"]
            assert person["occupation"] in ("baker", "teacher", "train driver")
            assert 18 <= person["age"] <= 99
            assert len(person["favourite drinks"]) <= 2
            assert setting == "schema" or "tea" not in person["favourite drinks"]
            assert json.dumps(person, ensure_ascii=False) == completion.text, "no space too many"


def test_answers_to_a_regex_match_it_and_answers_do_not_hold_bad_words() -> None:
    for completion in work("regex")[2]:
        assert completion.finish_reason == "length" or re.fullmatch(DATES, completion.text)
    spelled = [tokenizer().encode_part(text) for word in BAD for text in (word, f" {word}")]
    for completion in work("bad words")[2]:
        for word in spelled:
            places = range(len(completion.token_ids) - len(word) + 1)
            assert all(list(completion.token_ids[at : at + len(word)]) != word for at in places)
        assert all(entry.logprob <= entry.top[0].logprob for entry in completion.logprobs)
