"""Greedy answers with drafts equal transformers' own, token for token, on every architecture at hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from paceline.drafters import load
from paceline.engine import Engine
from paceline.sampling import SamplingParams
from paceline.targets.torch import TorchTarget
from tests.torch.families import FAMILIES, VOCABULARY, model

TOKENS = 24


def prompts(count: int = 4) -> list[list[int]]:
    """Of different lengths, each with a part that it repeats, so that prompt lookup has something to find."""
    rng = random.Random(3)
    found = []
    for length in range(3, 3 + 4 * count, 4):
        part = [rng.randrange(3, VOCABULARY) for _ in range(length)]
        found.append(part + part[: length // 2])
    return found


def own_answer(of: Any, prompt: Sequence[int]) -> list[int]:
    """Greedy, by transformers."""
    whole = torch.tensor([prompt])
    out = of.generate(whole, attention_mask=torch.ones_like(whole), do_sample=False, max_new_tokens=TOKENS)
    return out[0, len(prompt) :].tolist()


def engine(target: TorchTarget, drafter: str, of: Any) -> Engine:
    return Engine(
        target,
        {"drafter": load(drafter, target.info)},
        drafter="drafter",
        eos_ids=frozenset({of.config.eos_token_id}),
        chunk_tokens=7,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_those_of_transformers(family: str) -> None:
    of = model(family)
    target = TorchTarget(of)
    params = SamplingParams(temperature=0, max_tokens=TOKENS)
    done = engine(target, "recycling:min_probability=1e-6", of).generate(prompts(), params)
    expected = [own_answer(of, prompt) for prompt in prompts()]
    assert [list(completion.token_ids) for completion in done] == expected
    assert sum(completion.stats.drafted for completion in done) > 0
    assert len({tuple(answer) for answer in expected}) > 1
