"""Gemma 3 270M itself: its tokens and its greedy answers beside those of llama.cpp on the same file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.core import Tree
from paceline.models.registry import resolve
from paceline.models.tokenizer import Tokenizer
from paceline.targets.native import NativeTarget
from tests.native.golden import families
from tests.native.models import step

pytestmark = pytest.mark.gemma
GOLDEN = json.loads((Path(families.__file__).parent / "gemma3-270m.json").read_text(encoding="utf-8"))


@cache
def model() -> tuple[NativeTarget, Tokenizer]:
    target = NativeTarget.load(resolve("gemma3-270m"), context=1024)
    return target, Tokenizer.from_json(target.tokenizer_json)


def test_hard_texts_are_tokenised_as_by_llama_cpp_and_survive_the_round_trip() -> None:
    tokenizer = model()[1]
    for text, ids in GOLDEN["texts"]:
        assert tokenizer.encode(text) == [tokenizer.bos_id, *ids], text
        assert tokenizer.decode(ids) == text


def test_control_tokens_in_text_are_text_and_end_answers() -> None:
    tokenizer = model()[1]
    turn = tokenizer.encode("<start_of_turn>user\n", special=True)
    assert turn == [2, 105, 2364, 107]
    assert 105 not in tokenizer.encode("<start_of_turn>user\n")
    assert tokenizer.eos_ids == {1, 106}
    assert not tokenizer.has_chat_template  # this file is the base model's


def logits(target: NativeTarget, tokens: list[int]) -> Any:
    chunk = tokens[:]
    rows = step(target, [(0, [tokens[0]], 0, 1, Tree.chain(chunk[1:]))], [range(len(chunk) - 1)])
    target.release([0])
    return rows


def test_greedy_answers_are_those_of_llama_cpp() -> None:
    """Up to near-ties: activations are rounded in both programs, but not alike."""
    target = model()[0]
    same, agree = 0, []
    for record in GOLDEN["answers"]:
        prompt, answer = record["prompt"], record["answer"]
        found = logits(target, prompt + answer)[len(prompt) - 1 : -1].argmax(-1)
        agree += list(found == answer)
        same += bool((found == answer).all())
    assert np.mean(agree) >= 0.97
    assert same >= len(GOLDEN["answers"]) / 2
