"""What every policy must hold to; a new file in paceline/policies is found and tested by itself."""

from __future__ import annotations

import random

import numpy as np
import pytest

from paceline.core import NOTHING, Budget, Drawn, Origin, Tree, View
from paceline.drafters import load as load_drafter
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.laws import Controls
from paceline.policies import load, names, options
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.contract.test_drafters import repetitive
from tests.unit.test_policies import step


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def view(rows: int, coupled: bool = True) -> View:
    return View(
        list(range(rows)),
        [[1, 2, 3]] * rows,
        [2] * rows,
        [3] * rows,
        [Controls(SamplingParams(), (), [])] * rows,
        list(range(rows)),
        [1] * rows,
        ["d"] * rows,
        coupled=coupled,
    )


def any_tree(rng: random.Random, budget: Budget) -> Tree:
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    for node in range(rng.randint(0, budget.nodes)):
        parent = rng.randint(-1, node - 1)
        if parent >= 0 and depths[parent] == budget.depth:
            parent = -1
        depths.append(depths[parent] + 1 if parent >= 0 else 1)
        tokens.append(rng.randrange(9))
        parents.append(parent)
    confidences = [rng.random() for _ in tokens] if rng.random() < 0.7 else ()
    sources = [rng.randint(1, 3) for _ in tokens] if rng.random() < 0.5 else ()
    return Tree(tokens, parents, confidences=confidences, sources=sources)


def paths(tree: Tree) -> set[tuple[int, ...]]:
    below: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        below.append((*(below[parent] if parent >= 0 else ()), token))
    return set(below)


def test_every_option_has_a_default_of_a_kind_that_can_be_typed(name: str) -> None:
    assert all(isinstance(default, int | float | bool | str) for default in options(name).values())


def test_an_unknown_option_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"policy {name} has no option 'colour'"):
        load(f"{name}:colour=red")


@pytest.mark.parametrize("coupled", [True, False])
def test_it_stays_within_limits_and_scores_some_of_what_was_proposed(name: str, coupled: bool) -> None:
    policy, rng = load(name), random.Random(3)
    for _ in range(150):
        seen = view(rng.randint(1, 20), coupled)
        nodes = rng.randint(1, 24)
        limits = [Budget(rng.choice((0, 1, 5, 16)), rng.choice((1, 3, 20))) for _ in seen.slots]
        limits = [limit if limit.nodes else Budget(0, 0) for limit in limits]
        budgets = policy.allot(seen, limits, nodes)
        assert len(budgets) == len(limits)
        for budget, limit in zip(budgets, limits, strict=True):
            assert 0 <= budget.nodes <= limit.nodes
            assert 0 <= budget.depth <= limit.depth
        if not coupled:
            assert sum(budget.nodes for budget in budgets) <= nodes
        trees = [any_tree(rng, budget) if min(budget) else NOTHING for budget in budgets]
        chosen = policy.choose(seen, trees)
        assert sum(len(tree.tokens) for tree in chosen) <= nodes
        for tree, whole in zip(chosen, trees, strict=True):
            assert paths(tree) <= paths(whole)
            assert all(-1 <= parent < node for node, parent in enumerate(tree.parents))
            assert len(tree.confidences) in (0, len(tree.tokens))
        accepted = [int(bool(tree.tokens) and tree.parents[0] < 0) for tree in chosen]
        policy.observe(step(seen, chosen, accepted))
        if rng.random() < 0.1:
            policy.release([rng.randrange(20)])


def test_under_a_rule_that_compares_laws_it_never_looks_at_a_drawn_token(name: str) -> None:
    """The same shapes and laws with other tokens: what is kept are the same nodes."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        law = Origin(Drawn.IID, rng.dirichlet(np.ones(5)))
        parents = [-1, -1, 0, 1, 2, 2]
        kept = []
        for tokens in rng.integers(0, 5, (6, len(parents))).tolist():
            policy, seen = load(name), view(1, coupled=False)
            policy.allot(seen, [Budget(9, 9)], 9)
            tree = Tree(tokens, parents, dict.fromkeys(range(len(parents)), law))
            chosen = policy.choose(seen, [tree])[0]
            kept.append(list(chosen.parents))
            assert len(chosen.origins) == len(chosen.tokens)
        assert all(one == kept[0] for one in kept)


def test_a_slot_that_it_never_saw_may_be_released(name: str) -> None:
    load(name).release([5, 6])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", ["auto", "suffix+markov:widths=2x2x1+ngram:shortest=1"])
def test_answers_equal_plain_decoding(name: str, drafter: str, temperature: float) -> None:
    def generate(spec: str, batch: int) -> list[Completion]:
        target = TableTarget()
        loaded = {"d": load_drafter(spec, target.info)}
        engine = Engine(target, loaded, drafter="d", policy=load(name), max_batch=batch, chunk_tokens=9)
        params = [SamplingParams(seed=s, temperature=temperature, max_tokens=20) for s in range(40)]
        return engine.generate([repetitive(seed, 3 + seed % 20) for seed in range(40)], params)

    plain = [done.token_ids for done in generate("none", 1)]
    for batch in (1, 7):
        done = generate(drafter, batch)
        assert [one.token_ids for one in done] == plain
        assert sum(one.stats.drafted for one in done) > 0
