"""The lossy rules accept what their pages say, at the bounds and on both sides of them."""

from __future__ import annotations

import math
from pathlib import Path as File

import numpy as np
import pytest

from paceline.core import Draft, Rule, Tree
from paceline.rules import options
from paceline.rules.lenient import lenient
from paceline.rules.top import top
from paceline.rules.typical import typical
from tests.lossless.enumeration import (
    ROW,
    Chance,
    Path,
    branches,
    enumerated,
    every,
    laws,
    levels,
    planned,
    run,
)

P = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
ENTROPY = -sum(p * math.log(p) for p in P if p > 0)


def kept(rule: Rule, tree: Tree, p: np.ndarray = P) -> dict[Path, float]:
    """{accepted tokens: probability} where the target's law is the same everywhere."""
    table = every(len(p), 3, lambda: p)
    found: dict[Path, float] = {}
    draft = Draft.pack(ROW, [tree])
    for probability, (path, _) in branches(lambda chance: run(rule, draft, table, chance)):
        found[path] = found.get(path, 0.0) + probability
    return {path: probability for path, probability in found.items() if probability > 0}


def passes(rule: Rule, token: int, p: np.ndarray = P) -> float:
    """Probability that one drafted token is accepted."""
    return kept(rule, Tree([token], [-1]), p).get((token,), 0.0)


@pytest.mark.parametrize("token", range(5))
@pytest.mark.parametrize(("epsilon", "delta"), [(0.3, 0.09), (0.2, 1.0), (0.15, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_typical_compares_a_probability_with_both_bounds(token: int, epsilon: float, delta: float) -> None:
    bound = min(epsilon, delta * math.exp(-ENTROPY))
    rule = typical.with_options(epsilon=epsilon, delta=delta)
    assert passes(rule, token) == (P[token] > bound)


def test_typical_takes_the_longest_path_and_of_equally_long_ones_the_likeliest() -> None:
    rule = typical.with_options(epsilon=0.1, delta=1.0)
    assert set(kept(rule, Tree([1, 0, 1], [-1, -1, 0]))) == {(1, 1)}
    assert set(kept(rule, Tree([1, 0, 2, 2], [-1, -1, 0, 1]))) == {(0, 2)}
    assert set(kept(rule, Tree([0, 1], [-1, -1]))) == {(0,)}
    assert set(kept(rule, Tree([1, 0], [-1, -1]))) == {(0,)}
    assert set(kept(rule, Tree([0, 3, 0], [-1, 0, 1]))) == {(0,)}  # the path ends where a token fails
    assert set(kept(rule, Tree([], []))) == {()}


def test_typical_takes_the_first_of_equal_siblings() -> None:
    tree = Tree([0, 0, 3], [-1, -1, 1])
    draft = Draft.pack(ROW, [tree])
    table = every(5, 3, lambda: P)

    class Own:
        def law(self, node: int) -> np.ndarray:
            return table[()]

        def draw(self, node: int, noise: object) -> int:
            return 4

    verdict = typical.with_options(epsilon=0.1, delta=1.0)(draft, Own(), None)  # type: ignore[arg-type]
    assert verdict.paths == [[1]]


@pytest.mark.parametrize(
    ("n", "margin", "accepted"),
    [
        (1, 1.0, {0}),
        (2, 1.0, {0, 1}),
        (3, 1.0, {0, 1, 2}),
        (9, 1.0, {0, 1, 2, 3}),  # never an impossible token
        (9, 0.2, {0, 1}),
        (9, 0.19, {0}),
        (9, 0.0, {0}),
        (3, 0.2, {0, 1}),
    ],
)
def test_top_accepts_the_n_likeliest_within_the_margin_and_the_targets_own(
    n: int, margin: float, accepted: set[int]
) -> None:
    rule = top.with_options(n=n, margin=margin)
    for token in range(5):
        assert passes(rule, token) == pytest.approx(1.0 if token in accepted else P[token])


def test_top_prefers_the_child_that_holds_the_targets_own_draw() -> None:
    found = kept(top.with_options(n=3, margin=1.0), Tree([1, 0, 3], [-1, -1, -1]))
    assert found == pytest.approx({(1,): 0.3 + 0.15, (0,): 0.5, (3,): 0.05})


def test_top_goes_on_with_the_targets_own_draw_below_what_it_accepted() -> None:
    p, _ = laws("random", 3, 2, 0)
    emitted = {path: np.zeros(3) for path in [(), (0,), (0, 1)]}
    draft = Draft.pack(ROW, [Tree.chain([0, 1])])
    for probability, (path, law) in branches(
        lambda chance: run(top.with_options(n=1, margin=0.0), draft, p, chance)
    ):
        emitted[path] += probability * law
    for path, law in emitted.items():
        if path == (0, 1):
            assert law / law.sum() == pytest.approx(p[path])
        else:  # the drafted token would have been accepted
            assert law[(0, 1)[len(path)]] == 0


@pytest.mark.parametrize(
    ("rule", "defaults"),
    [
        (typical, {"epsilon": 0.3, "delta": 0.09}),
        (lenient, {"lenience": 0.5}),
        (top, {"n": 3, "margin": 0.2}),
    ],
)
def test_defaults_are_the_papers_or_as_documented(rule: Rule, defaults: dict[str, float]) -> None:
    assert options(rule.name) == defaults
    page = File("docs/exactness.md").read_text(encoding="utf-8")
    assert all(f"`{name}={value:g}`" in page for name, value in defaults.items())


def test_tokens_as_likely_as_the_nth_pass_too() -> None:
    even = np.array([0.4, 0.2, 0.2, 0.2])
    rule = top.with_options(n=2, margin=1.0)
    assert [passes(rule, token, even) for token in range(4)] == pytest.approx([1, 1, 1, 1])
    assert passes(top.with_options(n=1), 1, even) == pytest.approx(0.2)


@pytest.mark.parametrize("lenience", [0.25, 0.5, 0.9, 1.0])
def test_lenient_accepts_min_of_one_and_p_over_lenience_q(lenience: float) -> None:
    rule = lenient.with_options(lenience=lenience)
    p, q = laws("random", 3, 3, 0)
    one = enumerated(rule, p, planned(levels(1), ["iid"], q))
    assert one.accepted == pytest.approx(np.minimum(q[()], p[()] / lenience).sum())
    assert (one.error < 1e-12) == (lenience == 1)
    two = enumerated(rule, p, planned(levels(1, 1), ["iid"], q))
    first = np.minimum(q[()], p[()] / lenience)
    second = [np.minimum(q[token,], p[token,] / lenience).sum() for token in range(3)]
    assert two.accepted == pytest.approx(first.sum() + first @ second)


@pytest.mark.parametrize("seed", range(5))
def test_no_token_becomes_more_likely_than_lenience_allows(seed: int) -> None:
    p, q = laws("random", 3, 2, seed)
    emitted = np.zeros(3)
    for weight, tree in branches(planned(levels(1), ["iid"], q)):

        def go(chance: Chance, tree: Tree = tree) -> tuple[Path, np.ndarray]:
            return run(lenient, Draft.pack(ROW, [tree]), p, chance)

        for probability, (path, law) in branches(go):
            emitted += weight * probability * (np.eye(3)[path[0]] if path else law)
    assert emitted.sum() == pytest.approx(1)
    assert (emitted <= p[()] / 0.5 + 1e-12).all()
