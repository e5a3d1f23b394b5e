"""Every rule draws from the table's own law, worked out here by hand; the twins are caught."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from paceline.core import Budget, Lane, Rule, Tree, View
from paceline.engine import Engine
from paceline.noise import Noise, gumbel
from paceline.rules.match import match
from paceline.sampling import SamplingParams, truncate
from paceline.targets.table import TableTarget
from tests.chi_square import chi_square
from tests.discovery import RULES
from tests.toys import Quiet, trusting

VOCABULARY = 6
PROMPT = (3, 1, 2, 3)
RUNS = 6000
SETTINGS = (
    {"temperature": 0.8},
    {"temperature": 1.2, "top_k": 3},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.2},
)


def law(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """Temperature, top-k, top-p and min-p, written once more from their definitions."""
    weights = [math.exp(x / params.temperature) for x in logits]
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


def two_tokens(table: np.ndarray, params: SamplingParams) -> dict[tuple[int, int], float]:
    """The law of the first two tokens of an answer to the prompt."""
    first = law(table[PROMPT[-2], PROMPT[-1]], params)
    return {
        (a, b): first[a] * second
        for a in range(VOCABULARY)
        for b, second in enumerate(law(table[PROMPT[-1], a], params))
    }


class Bushes(Quiet):
    """Random trees, two levels deep at least."""

    def __init__(self, table: np.ndarray) -> None:
        self.random = random.Random(3)

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        return [self.tree(budget) for budget in budgets]

    def tree(self, budget: Budget) -> Tree:
        count = min(budget.nodes, 6) if budget.depth else 0
        return Tree([self.random.randrange(VOCABULARY) for _ in range(count)], [-1, -1, 0, 0, 1, 1][:count])


class Coupled(Quiet):
    """Draws from a law near the target's with the target's own noise: the likeliest way to leak bias."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table + np.random.default_rng(1).normal(0, 0.7, table.shape)

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        noise, trees = Noise(view.seeds), []
        for row, budget in enumerate(budgets):
            text = list(view.histories[row])
            for _ in range(min(budget)):
                key = noise.key(row, Lane.TARGET, len(text))
                x = truncate(self.table[text[-2], text[-1]], view.controls[row].params)
                text.append(int((x + gumbel(key, VOCABULARY)).argmax()))
            trees.append(Tree.chain(text[len(view.histories[row]) :]))
        return trees


def sample(kind: type[Bushes] | type[Coupled], setting: Mapping[str, float], rule: Rule) -> list[tuple]:
    """The first two tokens of many answers, with a pending token before them so that both are drafted."""
    target = TableTarget(VOCABULARY, seed=4)
    engine = Engine(
        target, {"d": kind(target.table)}, drafter="d", rule=rule, max_batch=50, nodes=300, chunk_tokens=400
    )
    params = [SamplingParams(seed=seed, max_tokens=5, **setting) for seed in range(RUNS)]
    done = engine.generate([PROMPT] * RUNS, params)
    stats = [completion.stats for completion in done]
    assert sum(s.accepted for s in stats) > 0
    assert rule is trusting or sum(s.drafted - s.accepted for s in stats) > 0
    assert any(length >= 2 for s in stats for length in s.accepted_lengths)
    return [completion.token_ids for completion in done]


def second_and_third(answers: Sequence[tuple], params: SamplingParams, table: np.ndarray) -> float:
    """p-value of the two tokens behind the first, given the first: these were drafted."""
    observed = [answer[:3] for answer in answers]
    expected = {}
    for (a, b), probability in two_tokens(table, params).items():
        for c, third in enumerate(law(table[a, b], params)):
            expected[a, b, c] = probability * third
    return chi_square(observed, expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [Bushes, Coupled])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_rule_draws_from_the_law_of_the_table(
    rule: str, kind: type[Bushes], setting: dict[str, float]
) -> None:
    answers = sample(kind, setting, RULES[rule])
    table = TableTarget(VOCABULARY, seed=4).table
    params = SamplingParams(**setting)
    assert chi_square([answer[:2] for answer in answers], two_tokens(table, params)) > 1e-3
    assert second_and_third(answers, params, table) > 1e-3


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_answers_from_a_law_without_the_controls_are_caught(setting: dict[str, float]) -> None:
    table = TableTarget(VOCABULARY, seed=4).table
    answers = sample(Bushes, {"temperature": 1.0}, match)
    assert chi_square([answer[:2] for answer in answers], two_tokens(table, SamplingParams(**setting))) < 1e-6


@pytest.mark.parametrize("kind", [Bushes, Coupled])
def test_a_rule_that_trusts_the_drafter_is_caught_by_its_law(kind: type[Bushes]) -> None:
    table = TableTarget(VOCABULARY, seed=4).table
    answers = sample(kind, SETTINGS[0], trusting)
    assert second_and_third(answers, SamplingParams(**SETTINGS[0]), table) < 1e-6
