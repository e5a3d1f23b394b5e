"""The laws of whole answers: many requests through the real engine, against laws written out here.

Every answer has the same length, whatever happened in its steps, so both the joint law of all its tokens
and the law of each token given those before it can be tested without a bias from where steps ended.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2

from paceline.core import Drafter, Rule
from paceline.engine import Engine
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.toys import Likeliest, Sampling, SketchingTable

VOCABULARY = 5
LENGTH = 4  # the first token is never drafted, the second and third may be, the last follows them
PROMPT = (3, 1, 2, 3)
BATCH = 500
ALPHA = 1e-9
"""False alarms of one assertion; there are some hundreds."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top-k": {"temperature": 1.3, "top_k": 3},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p and penalties": {"temperature": 1.2, "min_p": 0.1, "frequency_penalty": 0.6},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": -0.4},
    "all": {
        "temperature": 1.1,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "logit_bias": {1: 0.8},
    },
}


def target() -> TableTarget:
    return SketchingTable(VOCABULARY, seed=4)


def drafters() -> dict[str, Drafter]:
    """{name: drafter}: chosen and drawn tokens, chains and trees, all from laws near the target's."""
    table = target().table
    return {
        "fixed chain": Likeliest(table, (1, 1)),
        "fixed tree": Likeliest(table, (2, 2)),
        "drawn chain": Sampling(table, (1, 1), "iid"),
        "drawn tree": Sampling(table, (2, 2), "iid"),
        "tree without replacement": Sampling(table, (3, 1), "without_replacement"),
    }


def law(logits: Sequence[float], params: SamplingParams, answer: Sequence[int]) -> list[float]:
    """The law after the prompt and this answer: the controls, written once more from their definitions."""
    adjusted = list(logits)
    for token, x in enumerate(logits):
        if token in (*PROMPT, *answer):
            adjusted[token] = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        count = list(answer).count(token)
        adjusted[token] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
        adjusted[token] += params.logit_bias.get(token, 0)
    weights = [math.exp(x / params.temperature) for x in adjusted]
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    order = order[: params.top_k or None]
    total, reached, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if reached >= params.top_p * total:
            break
        reached += weights[token]
        kept.append(token)
    kept = [token for token in kept if weights[token] >= params.min_p * weights[order[0]]]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


def laws(table: np.ndarray, params: SamplingParams) -> dict[tuple[int, ...], list[float]]:
    """{answer so far: law of its next token}, for all answers shorter than LENGTH."""
    found = {}
    for length in range(LENGTH):
        for answer in itertools.product(range(VOCABULARY), repeat=length):
            before, last = (*PROMPT, *answer)[-2:]
            found[answer] = law(table[before, last].tolist(), params, answer)
    return found


@dataclass(frozen=True)
class Judgement:
    """What many answers say.

    joint        p-values of the joint law of all tokens: Pearson's chi-square and the G-test
    conditional  the same of each token given those before it, pooled over what stands before
    drafted, accepted  tokens, of all answers
    """

    joint: tuple[float, float]
    conditional: tuple[tuple[float, float], ...]
    drafted: int
    accepted: int

    @property
    def rejected(self) -> int:
        return self.drafted - self.accepted

    @property
    def smallest(self) -> float:
        return min(*self.joint, *(p for pair in self.conditional for p in pair))


def p_values(
    rule: Rule,
    drafter: Drafter,
    setting: Mapping[str, Any],
    count: int,
    *,
    first_seed: int = 0,
    engine_type: type[Engine] = Engine,
    table_target: TableTarget | None = None,
) -> Judgement:
    """Answer `count` requests and judge their law. Raises AssertionError unless drafted tokens were
    accepted and rejected: without them nothing was tested."""
    table_target = table_target or target()
    engine = engine_type(
        table_target,
        {"d": drafter},
        drafter="d",
        rule=rule,
        max_batch=BATCH,
        nodes=8 * BATCH,
        chunk_tokens=len(PROMPT) * BATCH,
    )
    answers, drafted, accepted = [], 0, 0
    for first in range(first_seed, first_seed + count, 10 * BATCH):
        seeds = range(first, min(first + 10 * BATCH, first_seed + count))
        params = [SamplingParams(seed=seed, max_tokens=LENGTH, **setting) for seed in seeds]
        for done in engine.generate([PROMPT] * len(params), params):
            answers.append(done.token_ids)
            drafted += done.stats.drafted
            accepted += done.stats.accepted
    assert engine.load.draft_failures == {}
    assert 0 < accepted < drafted
    joint, conditional = judge(np.array(answers), laws(table_target.table, SamplingParams(**setting)))
    return Judgement(joint, conditional, drafted, accepted)


Statistics = tuple[float, float, int]
"""Pearson's, G, degrees of freedom."""


def judge(
    answers: np.ndarray, expected: Mapping[tuple[int, ...], Sequence[float]]
) -> tuple[tuple[float, float], tuple[tuple[float, float], ...]]:
    """Joint and conditional p-values. answers: int [N, LENGTH]."""
    shape = (VOCABULARY,) * LENGTH
    counts = np.bincount(np.ravel_multi_index(tuple(answers.T), shape), minlength=VOCABULARY**LENGTH)
    counts = counts.reshape(shape)
    joint = np.ones(())
    conditional = []
    for length in range(LENGTH):
        seen = counts.sum(axis=tuple(range(length + 1, LENGTH)))
        pooled = [0.0, 0.0, 0]
        law = np.array(
            [expected[answer] for answer in itertools.product(range(VOCABULARY), repeat=length)]
        ).reshape((VOCABULARY,) * (length + 1))
        for answer in itertools.product(range(VOCABULARY), repeat=length):
            one = statistics(seen[answer], law[answer] * seen[answer].sum())
            pooled = [a + b for a, b in zip(pooled, one, strict=True)]
        conditional.append(tails(pooled))
        joint = joint[..., None] * law
    return tails(statistics(counts.ravel(), joint.ravel() * len(answers))), tuple(conditional)


def statistics(seen: np.ndarray, expected: np.ndarray) -> Statistics:
    """Cells expected fewer than five times are counted together; a token seen that cannot be is infinite."""
    if (seen[expected == 0] > 0).any():
        return math.inf, math.inf, 1
    common = expected >= 5
    if not common.any():
        return 0.0, 0.0, 0
    mean = np.append(expected[common], expected[~common].sum())
    number = np.append(seen[common], seen[~common].sum())
    if mean[-1] < 5:  # too few even together: they go to the last common cell
        mean[-2:], number[-2:] = (mean[-2:].sum(), 0), (number[-2:].sum(), 0)
        mean, number = mean[:-1], number[:-1]
    g = 2 * float((number * np.log(np.maximum(number, 1e-300) / mean)).sum())
    return float(((number - mean) ** 2 / mean).sum()), g, len(mean) - 1


def tails(found: Sequence[float]) -> tuple[float, float]:
    pearson, g, freedom = found
    return float(chi2.sf(pearson, freedom)), float(chi2.sf(g, freedom))
