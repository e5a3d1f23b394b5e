"""What is asked for in a simulation, and what plain decoding, one request at a time, answers."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from paceline.drafters import load
from paceline.engine import Engine
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.toys import VOCABULARY, Letters

PAGE = 4
LONGEST = 60
"""Tokens of a prompt and its answer at most."""
SETTINGS = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "logprobs": 2},
    {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"temperature": 1.0, "stop": ("bc", "fe"), "min_tokens": 2},
    {"temperature": 0.7, "prompt_logprobs": 2, "ignore_eos": True},
    {"temperature": 1.2, "ignore_eos": True},
)


class Job(NamedTuple):
    """A request and its plain answer."""

    prompt: tuple[int, ...]
    params: SamplingParams
    answer: Completion

    @property
    def text(self) -> tuple[int, ...]:
        """All tokens that may ever be in the cache for it."""
        return (*self.prompt, *self.answer.token_ids)


@cache
def jobs() -> tuple[Job, ...]:
    """Prompts of 1 to 36 tokens, many of which begin alike, in every setting."""
    rng = random.Random(1)
    beginnings = [[rng.randrange(1, VOCABULARY) for _ in range(30)] for _ in range(3)]
    asked = []
    for seed in range(70):
        known = rng.choice(beginnings)[: rng.choice((0, 0, 5, 12, 18, 30))]
        prompt = (*known, *(rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 6))))
        most = rng.randint(2, min(24, LONGEST - len(prompt)))
        asked.append((prompt, SamplingParams(seed=seed, max_tokens=most, **SETTINGS[seed % len(SETTINGS)])))
    target = TableTarget(VOCABULARY)
    target.info = replace(target.info, shares_pages=False)
    plain = Engine(
        target, {"none": load("none", target.info)}, drafter="none", tokenizer=Letters(), max_batch=1
    )
    return tuple(Job(*one, plain.generate(*one)[0]) for one in asked)


@cache
def cacheable() -> frozenset[tuple[int, ...]]:
    """Every text of whole pages that some job may leave in the cache."""
    return frozenset(job.text[:end] for job in jobs() for end in range(PAGE, len(job.text) + 1, PAGE))


@cache
def answers() -> dict[int, tuple[int, ...]]:
    """The plain answers by seed, for drafters that cheat."""
    return {job.answer.seed: job.answer.token_ids for job in jobs()}
