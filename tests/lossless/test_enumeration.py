"""Every rule, on every shape of tree it takes, worked out over all drafts and all coins; fixtures; dominance.

What stands in for noise and laws here is tested by itself: noise in tests/unit/test_noise.py, laws in
tests/unit/test_laws.py.
"""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from paceline import rules
from paceline.core import Budget, Draft, Drawn, Origin, Promise, Tree
from paceline.drafting import Prospect
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.noise import Noise
from paceline.rules import kseq as kseq_module
from tests.discovery import RULES, Record
from tests.lossless.broken_rules import BROKEN
from tests.lossless.enumeration import (
    DECLARATIONS,
    LAW_KINDS,
    ROW,
    SHAPES,
    Chance,
    Enumerated,
    LawsByPath,
    Path,
    Shape,
    branches,
    case,
    chain,
    enumerated,
    every,
    grown,
    is_caught,
    laws,
    levels,
    planned,
    seeds,
    takes,
    worst_error,
)

EXACT = {name: rule for name, rule in RULES.items() if rule.promise is not Promise.LOSSY}
LOSSY = sorted(RULES.keys() - EXACT.keys())
TOLERANCE = 1e-12


@cache
def found(name: str, shape: Shape, declaration: str, kind: str, seed: int = 0) -> Enumerated:
    return case(RULES[name], shape, declaration, kind, seed)


@pytest.mark.parametrize("declaration", DECLARATIONS)
@pytest.mark.parametrize("name", EXACT)
def test_every_exact_rule_gives_the_targets_joint_law(
    name: str, declaration: str, record_property: Record
) -> None:
    shapes = [shape for shape in SHAPES if takes(EXACT[name], shape, declaration)]
    if not shapes:
        assert declaration not in ("iid", "fixed") or name == "kseq"
        return
    seen = [
        found(name, shape, declaration, kind, seed)
        for shape in shapes
        for kind in LAW_KINDS
        for seed in range(seeds(shape))
    ]
    record_property("laws compared", len(seen))
    record_property("worst error", max(one.error for one in seen))
    assert max(one.error for one in seen) <= TOLERANCE
    assert max(abs(one.total - 1) for one in seen) <= TOLERANCE
    assert max(one.accepted for one in seen) > 0.5
    assert max(one.refused for one in seen) > 0.5
    assert {0, 1, 2} <= frozenset().union(*(one.lengths for one in seen))


def test_the_helper_for_other_tests_says_the_same() -> None:
    assert worst_error(EXACT["block"]) <= TOLERANCE
    assert worst_error(BROKEN["block_that_stops_at_the_first_refusal"]) > 0.1


def test_every_way_of_drawing_is_tried_with_some_rule_on_every_shape() -> None:
    for shape, declaration in itertools.product(SHAPES, DECLARATIONS):
        assert sum(takes(rule, shape, declaration) for rule in EXACT.values()) >= 2


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_rule_is_caught(name: str) -> None:
    assert is_caught(BROKEN[name], [levels(1, 1), levels(1, 1, 1), levels(2), levels(2, 1), levels(3)])


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_rules_are_lossy_and_say_so(name: str) -> None:
    one = case(RULES[name], levels(1, 1), "iid", "random")
    assert one.variation > 0.02
    assert one.accepted > 0.1
    assert RULES[name].promise is Promise.LOSSY
    with pytest.raises(ConfigError, match=f"rule {name} is lossy"):
        rules.load(name)


# What a drafter may get wrong, and what its drafts would do to exact rules -----------------------------

LIED_TO = ("rejection", "block", "recursive", "traversal", "kseq")


@pytest.mark.parametrize("name", LIED_TO)
def test_likeliest_tokens_declared_as_drawn_are_caught(name: str) -> None:
    p, q = laws("random", 3, 3, 0)
    honest = planned(levels(1, 1), ["fixed"], q)

    def lying(chance: Chance) -> Tree:
        tree = honest(chance)
        paths: list[Path] = [(), tuple(tree.tokens[:1])]
        return tree._replace(origins={node: Origin(Drawn.IID, q[paths[node]]) for node in (0, 1)})

    assert enumerated(EXACT[name], p, lying).variation > 0.1


@pytest.mark.parametrize("name", LIED_TO)
def test_a_law_before_its_controls_is_caught(name: str) -> None:
    p, q = laws("random", 3, 3, 0)
    warped = {path: law**2 / (law**2).sum() for path, law in q.items()}
    honest = planned(levels(1, 1), ["iid"], warped)

    def lying(chance: Chance) -> Tree:
        tree = honest(chance)
        paths: list[Path] = [(), tuple(tree.tokens[:1])]
        return tree._replace(origins={node: Origin(Drawn.IID, q[paths[node]]) for node in (0, 1)})

    assert enumerated(EXACT[name], p, honest).error <= TOLERANCE
    assert enumerated(EXACT[name], p, lying).variation > 0.01


@pytest.mark.parametrize("name", ["recursive", "traversal", "kseq"])
def test_equal_siblings_taken_out_of_a_draft_are_caught(name: str) -> None:
    p, q = laws("random", 3, 2, 0)
    honest = planned(levels(3), ["iid"], q)

    def deduplicated(chance: Chance) -> Tree:
        tree = honest(chance)
        first = [node for node, token in enumerate(tree.tokens) if token not in tree.tokens[:node]]
        return Tree(
            [tree.tokens[node] for node in first],
            [-1] * len(first),
            {place: tree.origins[node] for place, node in enumerate(first)},
        )

    assert enumerated(EXACT[name], p, honest).error <= TOLERANCE
    assert enumerated(EXACT[name], p, deduplicated).error > 1e-3


# Non-anticipation: methods that decide after the draw --------------------------------------------------


@pytest.mark.parametrize("name", LIED_TO)
def test_dropping_a_drawn_token_because_it_is_unlikely_is_lossy_and_stopping_before_it_is_not(
    name: str,
) -> None:
    p, q = laws("random", 4, 4, 3)

    def unsure(prospect: Prospect) -> bool:
        return prospect.law.max() >= 0.5

    whole = grown(q, (1, 1, 1), Drawn.IID)
    stopped = enumerated(EXACT[name], p, grown(q, (1, 1, 1), Drawn.IID, unsure))
    assert stopped.error <= TOLERANCE
    assert 0.05 < stopped.accepted < enumerated(EXACT[name], p, whole).accepted

    def dropped(chance: Chance) -> Tree:
        tree = whole(chance)
        kept = 0
        while kept < 3 and tree.origins[kept].law[tree.tokens[kept]] >= 0.3:
            kept += 1
        origins = {node: tree.origins[node] for node in range(kept)}
        return Tree(tree.tokens[:kept], tree.parents[:kept], origins)

    assert enumerated(EXACT[name], p, dropped).variation > 0.1


@pytest.mark.parametrize("name", LIED_TO)
def test_a_scheduler_that_looks_at_all_drawn_tokens_is_lossy(name: str) -> None:
    """The counterexample of DSpark's appendix: two tokens, p(A) = 0.7, q(A) = 0.5. Where A was drawn, the
    scheduler hopes for a long draft and submits it; where B was drawn, it submits nothing."""
    p = every(2, 3, lambda: np.array([0.7, 0.3]))
    q = every(2, 3, lambda: np.array([0.5, 0.5]))
    whole = grown(q, (1,), Drawn.IID)

    def scheduled(chance: Chance) -> Tree:
        tree = whole(chance)
        return tree if tree.tokens == [0] else Tree((), ())

    assert enumerated(EXACT[name], p, whole).error <= TOLERANCE
    assert enumerated(EXACT[name], p, scheduled).variation == pytest.approx(0.85 - 0.7)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *itertools.product(("match", "recursive", "traversal"), (Drawn.IID, Drawn.WITHOUT_REPLACEMENT)),
        ("kseq", Drawn.IID),
    ],
)
def test_trees_that_grow_on_their_own_paths_are_exact(name: str, how: Drawn) -> None:
    for seed in range(3):
        p, q = laws("random", 3, 3, seed)
        for condition in (
            lambda prospect: prospect.law.max() > 0.5,
            lambda prospect: prospect.probability > 0.3,
            lambda prospect: prospect.path != (1,),
        ):
            one = enumerated(EXACT[name], p, grown(q, (2, 2), how, condition, Budget(5, 2)))
            assert one.error <= TOLERANCE
            assert one.accepted > 0.1


@pytest.mark.parametrize("name", ["match", "recursive", "traversal", "kseq"])
def test_growing_below_a_child_because_of_its_drawn_sibling_is_exact(name: str) -> None:
    """The sibling's token is known before those below the child are drawn. Traversal judges the child with
    all below it first, but accepts something of it with the same probability whatever is below."""
    p, q = laws("random", 3, 3, 1)
    whole = planned(levels(2, 1), ["iid"], q)

    def by_the_sibling(chance: Chance) -> Tree:
        tree = whole(chance)
        if tree.tokens[1] == 0:
            return tree
        kept = [node for node in range(4) if tree.parents[node] != 0]
        places = {-1: -1, **{node: place for place, node in enumerate(kept)}}
        return Tree(
            [tree.tokens[node] for node in kept],
            [places[tree.parents[node]] for node in kept],
            {places[node]: tree.origins[node] for node in kept},
        )

    assert enumerated(EXACT[name], p, by_the_sibling).error <= TOLERANCE


# Fixtures ----------------------------------------------------------------------------------------------


def context_free(p: list[float], q: list[float], depth: int) -> tuple[dict, dict]:
    return every(len(p), depth, lambda: np.array(p)), every(len(q), depth, lambda: np.array(q))


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("rejection", 10 / 9),
        ("recursive", 10 / 9),
        ("kseq", 10 / 9),
        ("block", 11 / 9),
        ("traversal", 11 / 9),
    ],
)
def test_the_block_verification_papers_example(name: str, accepted: float) -> None:
    p, q = context_free([1 / 3, 2 / 3], [2 / 3, 1 / 3], 3)
    one = enumerated(EXACT[name], p, planned(levels(1, 1), ["iid"], q))
    assert one.accepted == pytest.approx(accepted, abs=1e-12)


@pytest.mark.parametrize(
    ("k", "name", "kind", "accepted"),
    [
        (1, "recursive", "iid", 0.8),
        (1, "recursive", "without", 0.8),
        (1, "kseq", "iid", 0.8),
        (2, "recursive", "iid", 0.92),
        (2, "recursive", "without", 0.95),
        (2, "recursive", "fixed", 0.80),
        (2, "kseq", "iid", 0.9431),
        (3, "recursive", "iid", 0.956),
        (3, "recursive", "without", 0.96667),
        (3, "kseq", "iid", 0.97526),
    ],
)
def test_one_level_of_siblings(k: int, name: str, kind: str, accepted: float) -> None:
    p, q = context_free([0.5, 0.3, 0.15, 0.05], [0.4, 0.2, 0.2, 0.2], 2)
    one = enumerated(EXACT[name], p, planned(levels(k), [kind], q))
    assert one.error <= TOLERANCE
    assert one.accepted == pytest.approx(accepted, abs=5e-5 if name == "kseq" else 5e-6)


@pytest.mark.parametrize(("k", "rho"), [(1, 1.0), (2, 1.2385), (3, 1.3763)])
def test_the_rho_of_k_seq(k: int, rho: float) -> None:
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.4, 0.2, 0.2, 0.2])
    assert kseq_module._rho(p, q, k) == pytest.approx(rho, abs=5e-5)


def random_models() -> dict[tuple[int, ...], tuple[int, dict, dict]]:
    """The laws of the traversal fixtures: whole numbers from 1 to 9, normalised, one after the other."""
    generator = random.Random(5)

    def law(vocabulary: int) -> np.ndarray:
        weights = [generator.randint(1, 9) for _ in range(vocabulary)]
        return np.array([float(Fraction(weight, sum(weights))) for weight in weights])

    models = {}
    for vocabulary, widths in (
        (2, (1, 1)),
        (3, (1, 1, 1)),
        (3, (2, 1)),
        (3, (2, 2)),
        (3, (3, 1)),
        (2, (2, 2)),
        (3, (2, 1, 1)),
    ):
        depth = len(widths) + 1
        p = every(vocabulary, depth, lambda vocabulary=vocabulary: law(vocabulary))
        models[widths] = (vocabulary, p, every(vocabulary, depth, lambda v=vocabulary: law(v)))
    return models


@pytest.mark.parametrize(
    ("name", "kind", "accepted"),
    [
        ("recursive", "iid", 2.055),
        ("traversal", "iid", 2.210),
        ("recursive", "without", 2.080),
        ("traversal", "without", 2.242),
    ],
)
def test_two_chains_of_three_tokens(name: str, kind: str, accepted: float) -> None:
    _, p, q = random_models()[2, 1, 1]
    one = enumerated(EXACT[name], p, planned(levels(2, 1, 1), [kind], q))
    assert one.error <= TOLERANCE
    assert one.accepted == pytest.approx(accepted, abs=5e-4)


# Dominance ---------------------------------------------------------------------------------------------

CHAINS = [shape for shape in SHAPES if chain(shape)]


@pytest.mark.parametrize("kind", LAW_KINDS)
def test_block_accepts_at_least_as_much_as_rejection_and_as_much_as_traversal(kind: str) -> None:
    gained = 0.0
    for shape, seed in itertools.product(CHAINS, range(8)):
        accepted = {name: found(name, shape, "iid", kind, seed).accepted for name in EXACT}
        assert accepted["rejection"] <= accepted["block"] + TOLERANCE
        assert accepted["block"] == pytest.approx(accepted["traversal"], abs=TOLERANCE)
        assert accepted["rejection"] == pytest.approx(accepted["recursive"], abs=TOLERANCE)
        assert accepted["rejection"] == pytest.approx(accepted["kseq"], abs=TOLERANCE)
        assert accepted["match"] <= accepted["rejection"] + TOLERANCE
        gained = max(gained, accepted["block"] - accepted["rejection"])
    assert (gained > 0.001) == (kind in ("random", "zero entries"))


@pytest.mark.parametrize("declaration", DECLARATIONS)
@pytest.mark.parametrize("kind", LAW_KINDS)
def test_traversal_accepts_at_least_as_much_as_recursive(kind: str, declaration: str) -> None:
    for shape in SHAPES:
        accepted = [found(name, shape, declaration, kind).accepted for name in ("recursive", "traversal")]
        assert accepted[0] <= accepted[1] + TOLERANCE


def optimum(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """The most that any rule can accept of k independent draws: min over sets H of p(H) + 1 - q(H)^k."""
    sets = itertools.product((False, True), repeat=len(p))
    return min(float(p[list(chosen)].sum() + 1 - q[list(chosen)].sum() ** k) for chosen in sets)


@pytest.mark.parametrize("kind", LAW_KINDS)
def test_no_rule_accepts_more_siblings_than_can_be(kind: str) -> None:
    for k, seed in itertools.product((1, 2, 3), range(8)):
        p, q = laws(kind, 3, 2, seed)
        draft, best = planned(levels(k), ["iid"], q), optimum(p[()], q[()], k)
        for name in ("recursive", "traversal", "kseq"):
            accepted = enumerated(EXACT[name], p, draft).accepted
            assert accepted <= best + TOLERANCE
            assert k > 1 or accepted == pytest.approx(best, abs=TOLERANCE)
            assert accepted >= (1 - 1 / np.e) * best - TOLERANCE or name != "kseq"


@pytest.mark.parametrize("name", ["kseq"])
def test_siblings_of_several_laws_are_refused_where_one_is_needed(name: str) -> None:
    law = np.array([0.5, 0.5, 0.0])
    tree = Tree([0, 1], [-1, -1], {0: Origin(Drawn.IID, law), 1: Origin(Drawn.IID, law[::-1].copy())})
    draft = Draft.pack(ROW, [tree])
    p = every(3, 2, lambda: np.full(3, 1 / 3))
    with pytest.raises(IncompatibleDrafter, match=f"rule {name} takes siblings drawn .* from one law"):
        EXACT[name](draft, LawsByPath(draft, p, Chance(())), Noise([1]))  # type: ignore[arg-type]


def test_branches_are_all_ways_and_their_probabilities_sum_to_one() -> None:
    def dice(chance: Chance) -> tuple[int, ...]:
        first = chance.decide([0.5, 0.5, 0.0])
        return (first, chance.decide([0.25, 0.75])) if first else (first,)

    assert sorted(branches(dice)) == [(0.125, (1, 0)), (0.375, (1, 1)), (0.5, (0,))]


def test_shapes_are_what_they_are_called() -> None:
    leaf: Shape = ()
    assert levels(2, 1) == ((leaf,), (leaf,))
    assert [chain(shape) for shape in (levels(1, 1), levels(2), ((leaf, leaf),))] == [True, False, False]
