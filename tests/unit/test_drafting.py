"""Trees of drawn tokens: shapes and budgets, and the two properties that law rules stand on.

Truthful: the law a token carries is the array it was drawn from. Non-anticipating: whether a token is drawn
is decided before it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from paceline import drafting
from paceline.core import Budget, Drawn, Tree, View
from paceline.drafting import Paths, Prospect, Subset, grow, grow_likeliest, warped
from paceline.laws import Controls
from paceline.noise import Noise, Tokens
from paceline.sampling import SamplingParams

V = 5
RNG = np.random.default_rng(2)
TABLE = RNG.dirichlet(np.ones(V), (V + 1, V))
HOW = [Drawn.IID, Drawn.WITHOUT_REPLACEMENT]


def view(seeds: Sequence[int], coupled: bool = False, temperature: float = 1) -> View:
    rows = len(seeds)
    return View(
        range(rows),
        [[1, 2, 3]] * rows,
        [2] * rows,
        [3] * rows,
        [Controls(SamplingParams(temperature=temperature), (), (1, 2, 3))] * rows,
        seeds,
        [1] * rows,
        ["d"] * rows,
        coupled=coupled,
    )


def laws(paths: Paths) -> list[np.ndarray]:
    """A law for each path, by its last two tokens; weights, not yet probabilities."""
    return [3 * TABLE[path[-2] + 1 if len(path) > 1 else 0, path[-1] if path else 0] for _, path in paths]


def one(
    seed: int, widths: Sequence[int], how: Drawn, budget: Budget | None = None, **options: object
) -> Tree:
    budget = budget or Budget(1000, len(widths))
    [tree] = grow(view([seed]), [budget], laws, widths=widths, drawn=how, **options)  # type: ignore[arg-type]
    return tree


def path_to(tree: Tree, node: int) -> tuple[int, ...]:
    path: tuple[int, ...] = ()
    while node >= 0:
        path = (tree.tokens[node], *path)
        node = tree.parents[node]
    return path


def depth(tree: Tree) -> int:
    return max((len(path_to(tree, node)) for node in range(len(tree.tokens))), default=0)


@pytest.mark.parametrize("how", HOW)
def test_every_node_gets_the_children_that_its_level_asks_for(how: Drawn) -> None:
    tree = one(1, (3, 2, 1), how)
    assert len(tree.tokens) == 3 + 6 + 6
    children = [list(tree.parents).count(node) for node in range(-1, 15)]
    assert children == [3] + [2] * 3 + [1] * 6 + [0] * 6
    assert {origin.drawn for origin in tree.origins.values()} == {how}
    assert set(tree.origins) == set(range(15))


@settings(max_examples=150, deadline=None)
@given(
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    nodes=st.integers(0, 12),
    deep=st.integers(0, 5),
    seed=st.integers(0, 2**63 - 1),
    how=st.sampled_from(HOW),
)
def test_a_tree_never_exceeds_its_budget(
    widths: list[int], nodes: int, deep: int, seed: int, how: Drawn
) -> None:
    tree = one(seed, widths, how, Budget(nodes, deep))
    assert len(tree.tokens) <= nodes
    assert depth(tree) <= min(deep, len(widths))
    if nodes and deep:
        assert len(tree.tokens) >= min(widths[0], nodes)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), how=st.sampled_from(HOW), widths=st.sampled_from([(1, 1, 1), (3, 2)]))
def test_the_law_a_token_carries_is_that_of_its_own_path(
    seed: int, how: Drawn, widths: tuple[int, ...]
) -> None:
    tree = one(seed, widths, how)
    for node, origin in tree.origins.items():
        above = path_to(tree, tree.parents[node])
        [weights] = laws([(0, above)])
        assert origin.law == pytest.approx(weights / weights.sum())
        assert origin.law[tree.tokens[node]] > 0
        siblings = [other for other in tree.origins if tree.parents[other] == tree.parents[node]]
        assert all(tree.origins[other].law is origin.law for other in siblings)
        if how is Drawn.WITHOUT_REPLACEMENT:
            assert len({tree.tokens[other] for other in siblings}) == len(siblings)


@pytest.mark.parametrize("how", HOW)
def test_tokens_really_follow_the_law_they_carry(how: Drawn) -> None:
    """Pairs of siblings, and a token given the one above it, over many seeds."""
    law = TABLE[0, 0]
    pair = np.outer(law, law)
    if how is Drawn.WITHOUT_REPLACEMENT:
        np.fill_diagonal(pair, 0)
        pair /= (1 - law)[:, None]
    below = law[:, None] * TABLE[0]
    trees = [one(seed, (2, 1), how) for seed in range(10_000)]
    seen_pair, seen_below = np.zeros((V, V)), np.zeros((V, V))
    for tree in trees:
        seen_pair[tree.tokens[0], tree.tokens[1]] += 1
        seen_below[tree.tokens[0], tree.tokens[2]] += 1
    assert tail(seen_pair, pair) > 1e-6
    assert tail(seen_below, below) > 1e-6
    other = np.outer(law, law) if how is Drawn.WITHOUT_REPLACEMENT else np.outer(law, law[::-1])
    assert tail(seen_pair, other) < 1e-6


def tail(seen: np.ndarray, law: np.ndarray) -> float:
    mean = (law * seen.sum()).ravel()
    assert not seen.ravel()[mean == 0].any()
    kept = mean > 0
    return float(chi2.sf(((seen.ravel() - mean)[kept] ** 2 / mean[kept]).sum(), kept.sum() - 1))


class Permuted(Noise):
    """Noise whose drafts are other tokens than they would have been, below a depth of its own."""

    shift = 1
    first_index = 0

    def draft(
        self, row: int, position: int, index: int, weights: np.ndarray, count: int, tokens: Tokens = None
    ) -> list[int]:
        drawn = super().draft(row, position, index, weights, count, tokens)
        if index < self.first_index:
            return drawn
        return [(token + self.shift) % V for token in drawn]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shift=st.integers(1, V - 1),
    place=st.integers(0, 3),
    threshold=st.floats(0.2, 0.9),
)
def test_what_is_drawn_at_a_place_does_not_change_the_decision_to_draw_there(
    seed: int, shift: int, place: int, threshold: float
) -> None:
    """All decisions up to and including the one on a place are the same whatever token is drawn there."""
    asked: list[list[tuple[tuple[int, ...], float, bool]]] = []

    def tree(noise: type[Noise]) -> Tree:
        asked.append([])

        def go_on(prospect: Prospect) -> bool:
            answer = bool(prospect.law.max() > threshold * 0.6 and prospect.probability > 0.001)
            asked[-1].append((prospect.path, prospect.probability, answer))
            return answer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drafting, "Noise", noise)
            return one(seed, (1, 1, 1, 1), Drawn.IID, go_on=go_on)

    Permuted.shift, Permuted.first_index = shift, place
    honest, permuted = tree(Noise), tree(Permuted)
    assert asked[0][: place + 1] == asked[1][: place + 1]
    assert (len(honest.tokens) > place) == (len(permuted.tokens) > place)
    assert honest.tokens[:place] == permuted.tokens[:place]
    if len(honest.tokens) > place:
        assert honest.tokens[place] != permuted.tokens[place]


def test_a_decision_sees_the_path_its_probability_and_the_law_to_come_and_no_more() -> None:
    seen: list[Prospect] = []

    def go_on(prospect: Prospect) -> bool:
        seen.append(prospect)
        return len(prospect.path) < 2

    tree = one(3, (2, 1, 1), Drawn.IID, go_on=go_on)
    assert depth(tree) == 2
    assert Prospect._fields == ("row", "path", "probability", "law")
    for prospect in seen:
        [weights] = laws([(0, prospect.path)])
        assert prospect.law == pytest.approx(weights / weights.sum())
        probability = 1.0
        for place in range(len(prospect.path)):
            [weights] = laws([(0, prospect.path[:place])])
            probability *= weights[prospect.path[place]] / weights.sum()
        assert prospect.probability == pytest.approx(probability)


def test_nothing_is_drawn_below_a_node_that_is_not_gone_on_from() -> None:
    assert one(1, (2, 2), Drawn.IID, go_on=lambda prospect: False) == Tree([], [], {}, [])


def test_rows_that_draw_nothing_get_no_tree_and_are_not_asked_about() -> None:
    rows = view([1, 2])
    rows = View(
        rows.slots,
        [[1, 2, 3], [1, 2, 3, 4]],
        rows.starts,
        rows.ends,
        rows.controls,
        rows.seeds,
        rows.prompts,
        rows.drafters,
        coupled=False,
    )
    asked: list[int] = []

    def watched(paths: Paths) -> list[np.ndarray]:
        asked.extend(row for row, _ in paths)
        return laws(paths)

    first, second = grow(rows, [Budget(3, 3)] * 2, watched, widths=(1, 1), drawn=Drawn.IID)
    assert len(first.tokens) == 2
    assert second.tokens == []
    assert set(asked) == {0}


def test_a_row_is_drawn_for_alike_in_any_batch() -> None:
    budgets = [Budget(9, 3)] * 3
    together = grow(view([7, 8, 9]), budgets, laws, widths=(2, 2), drawn=Drawn.IID)
    for seed, tree in zip((7, 8, 9), together, strict=True):
        alone = one(seed, (2, 2), Drawn.IID, Budget(9, 3))
        assert (alone.tokens, alone.parents) == (tree.tokens, tree.parents)


@pytest.mark.parametrize("how", HOW)
def test_under_a_rule_that_compares_tokens_the_targets_noise_is_used(how: Drawn) -> None:
    [tree] = grow(view([4], coupled=True), [Budget(9, 2)], laws, widths=(2, 1), drawn=how)
    [law] = laws([(0, ())])
    assert tree.tokens[:2] == Noise([4]).like_target(0, 3, law / law.sum(), 2)
    assert {origin.drawn for origin in tree.origins.values()} == {Drawn.COUPLED}


def test_at_temperature_0_the_likeliest_are_taken_without_noise() -> None:
    for seed in range(20):
        [tree] = grow(
            view([seed], coupled=True, temperature=0), [Budget(9, 2)], laws, widths=(3, 1), drawn=Drawn.IID
        )
        [law] = laws([(0, ())])
        assert tree.tokens[:3] == np.argsort(-law)[:3].tolist()


def test_where_no_token_is_possible_nothing_is_drawn() -> None:
    def blocked(paths: Paths) -> list[np.ndarray]:
        return [law * (len(path) < 1) for (_, path), law in zip(paths, laws(paths), strict=True)]

    for coupled in (True, False):
        [tree] = grow(view([1], coupled), [Budget(9, 3)], blocked, widths=(2, 2, 2), drawn=Drawn.IID)
        assert list(tree.parents) == [-1, -1]


def test_a_tokens_confidence_is_its_probability() -> None:
    tree = one(3, (2, 1), Drawn.IID)
    assert tree.confidences == [tree.origins[node].law[token] for node, token in enumerate(tree.tokens)]


def test_laws_may_come_from_another_array_library() -> None:
    def converted(paths: Paths) -> list[object]:
        return [strict.asarray(law) for law in laws(paths)]

    for how in HOW:
        [tree] = grow(view([5]), [Budget(9, 2)], converted, widths=(2, 2), drawn=how)
        assert (tree.tokens, tree.parents) == one(5, (2, 2), how)[:2]
        assert all(origin.law.dtype == strict.float64 for origin in tree.origins.values())


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("coupled", "temperature"), [(True, 0), (True, 0.8), (False, 0.8)])
def test_laws_over_a_subset_are_drawn_from_like_whole_laws_that_exclude_the_rest(
    how: Drawn, coupled: bool, temperature: float
) -> None:
    subset = Subset(np.array([0, 2, 3]), V)

    def part(paths: Paths) -> list[np.ndarray]:
        return [law[subset.ids] for law in laws(paths)]

    def whole(paths: Paths) -> list[np.ndarray]:
        return [subset.spread(law, 0.0) for law in part(paths)]

    for seed in range(40):
        now, shape = view([seed], coupled, temperature), {"widths": [2, 2, 1], "drawn": how}
        [left] = grow(now, [Budget(99, 3)], part, subset=subset, **shape)  # type: ignore[arg-type]
        [right] = grow(now, [Budget(99, 3)], whole, **shape)  # type: ignore[arg-type]
        assert left.tokens == right.tokens
        assert left.parents == right.parents
        assert left.confidences == right.confidences
        for node, origin in right.origins.items():
            assert left.origins[node].drawn is origin.drawn
            expected = origin.law[subset.ids] if coupled else origin.law
            np.testing.assert_allclose(left.origins[node].law, expected)


def test_controls_of_a_request_hold_for_a_subset_too() -> None:
    params = SamplingParams(temperature=0.7, top_k=2, repetition_penalty=1.5, logit_bias={3: 2.0})
    now = replace(view([1]), controls=[Controls(params, (), (1, 2, 3))])
    subset, logits = Subset(np.array([4, 1, 3]), V), np.log(TABLE[0, 0])
    found = warped(now, 0, (3,), logits[subset.ids], subset)
    wanted = warped(now, 0, (3,), subset.spread(logits[subset.ids], -np.inf))
    np.testing.assert_allclose(found, wanted[subset.ids])
    assert np.count_nonzero(found) == 2


def test_below_a_path_that_is_too_unlikely_nothing_is_drawn_or_asked_for() -> None:
    asked: list[tuple[int, ...]] = []

    def watched(paths: Paths) -> list[np.ndarray]:
        asked.extend(path for _, path in paths)
        return laws(paths)

    [tree] = grow(view([4]), [Budget(99, 3)], watched, widths=[3, 3, 3], drawn=HOW[1], least=0.1)
    reached = {path_to(tree, node): probability(tree, node) for node in range(len(tree.tokens))}
    assert {path for path in asked if path} == {
        path for path, reach in reached.items() if reach > 0.1 and len(path) < 3
    }
    assert any(reach <= 0.1 for reach in reached.values())


def probability(tree: Tree, node: int) -> float:
    return tree.confidences[node] * (probability(tree, tree.parents[node]) if tree.parents[node] >= 0 else 1)


def test_the_likeliest_of_all_that_a_few_of_each_level_lead_to_are_proposed() -> None:
    """Against every path there is: with a frontier of all nodes the tree holds the likeliest of them."""
    now, widths = view([3], coupled=True, temperature=0), [V, V, V]

    def tree(nodes: int, frontier: int, depth: int = 3) -> Tree:
        return grow_likeliest(now, [Budget(nodes, depth)], laws, widths=widths, frontier=frontier)[0]

    every = {path: reach for path, reach in _every_path(3).items() if path}
    for nodes in (1, 4, 11):
        found = tree(nodes, V**2)
        paths = {path_to(found, node) for node in range(nodes)}
        assert paths == set(sorted(every, key=lambda path: -every[path])[:nodes])
        assert all(-1 <= parent < node for node, parent in enumerate(found.parents))
    few = tree(99, 2)
    for length in (1, 2):
        above = [
            few.parents[node] for node in range(len(few.tokens)) if len(path_to(few, node)) == length + 1
        ]
        assert len(set(above)) == 2
    assert depth(tree(99, 3, depth=2)) == 2
    assert tree(0, 3).tokens == []
    assert len({path_to(few, node) for node in range(len(few.tokens))}) == len(few.tokens)


def _every_path(length: int) -> dict[tuple[int, ...], float]:
    paths = {(): 1.0}
    level = dict(paths)
    for _ in range(length):
        level = {
            (*path, token): reach * law[token] / law.sum()
            for path, reach in level.items()
            for law in laws([(0, path)])
            for token in range(V)
        }
        paths |= level
    return paths
