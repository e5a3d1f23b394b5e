"""What a pass costs, how likely a token is, when to rest; and what each policy does with that."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paceline.core import Budget, Draft, Drawn, Origin, Scores, Step, Tree, Verdict, View
from paceline.errors import ConfigError
from paceline.laws import Controls
from paceline.policies import load
from paceline.policies._calibration import Calibration
from paceline.policies._cost import SIZES, PassCost
from paceline.policies._levels import Levels
from paceline.policies._profile import MEASURED, kept_profile, profile
from paceline.rest import LONGEST, Rest
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget

CURVE = {1: 3.0, 2: 3.2, 4: 3.6, 8: 4.8, 16: 7.8, 32: 14.4}


def view(rows: int = 1, *, coupled: bool = True, drafter: str = "d") -> View:
    return View(
        list(range(rows)),
        [[1, 2, 3]] * rows,
        [2] * rows,
        [3] * rows,
        [Controls(SamplingParams(), (), [])] * rows,
        list(range(rows)),
        [1] * rows,
        [drafter] * rows,
        coupled=coupled,
    )


def step(seen: View, trees: Sequence[Tree], accepted: Sequence[int], seconds: float = 3e-3) -> Step:
    """Of each tree the first so many nodes are accepted; token 0 follows."""
    draft = Draft.pack(seen, trees)
    paths = [[draft.roots[row] + 1 + node for node in range(count)] for row, count in enumerate(accepted)]
    return Step(seen, draft, Scores(np.zeros(0)), Verdict(paths, [0] * len(trees)), seconds)


# What a pass costs ------------------------------------------------------------------------------------


def test_the_curve_goes_through_what_was_measured_and_on_beyond_it() -> None:
    cost = PassCost(CURVE)
    assert [cost.seconds(n) for n in CURVE] == pytest.approx(list(CURVE.values()))
    assert cost.seconds(3) == pytest.approx(3.4)
    assert cost.seconds(100) - cost.seconds(99) == pytest.approx((14.4 - 7.8) / 16)


def test_the_curve_never_falls_even_if_the_measurement_did() -> None:
    cost = PassCost({1: 3.7, 2: 4.1, 4: 3.9, 8: 3.9, 16: 8})
    seconds = [cost.seconds(n) for n in range(1, 80)]
    assert seconds == sorted(seconds)
    rng = random.Random(0)
    for _ in range(500):
        n = rng.randint(1, 40)
        cost.learn(n, (3 + 0.2 * n) * rng.choice((1, 1, 1, 5)))
    seconds = [cost.seconds(n) for n in range(1, 80)]
    assert seconds == sorted(seconds)


def test_a_machine_that_gets_slower_does_not_change_what_a_token_costs_beside_another() -> None:
    cost = PassCost(CURVE)
    before = cost.relative(8) / cost.relative(1)
    for _ in range(100):
        cost.learn(8, 2 * CURVE[8])
    assert cost.seconds(1) == pytest.approx(2 * CURVE[1], rel=0.25)
    assert cost.relative(8) / cost.relative(1) == pytest.approx(before, rel=0.2)


def test_a_wrong_shape_is_put_right_by_passes_of_several_sizes() -> None:
    cost = PassCost()
    rng = random.Random(0)
    for _ in range(3000):
        n = rng.randint(1, 16)
        cost.learn(n, CURVE[8] * n * rng.uniform(0.9, 1.1))
    assert cost.seconds(16) / cost.seconds(1) == pytest.approx(16, rel=0.2)


def test_one_pass_that_took_a_thousand_times_as_long_moves_little() -> None:
    cost = PassCost(CURVE)
    cost.learn(4, 1000 * CURVE[4])
    assert cost.seconds(4) < 1.2 * CURVE[4]


def test_a_profile_is_measured_once_and_kept(tmp_path: Path) -> None:
    target = TableTarget()
    measured = kept_profile(target, tmp_path, ("here", "table"))
    assert measured.keys() == set(MEASURED)
    assert not target._cache
    assert kept_profile(target, tmp_path, ("here", "table")) == measured
    assert kept_profile(target, tmp_path, ("there", "table")) != measured
    for wrong in (b"", b"{", b"[]", json.dumps({"1": -1.0}).encode(), json.dumps({"7": 1.0}).encode()):
        for file in tmp_path.iterdir():
            file.write_bytes(wrong)
        assert min(kept_profile(target, tmp_path, ("here", "table")).values()) > 0


def test_a_profile_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert kept_profile(TableTarget(), tmp_path / "file", ("here",))
    assert profile(TableTarget(max_positions=70)).keys() == {1, 2, 4}


# How likely a token is --------------------------------------------------------------------------------


def test_estimates_follow_what_happens_and_not_what_drafters_claim() -> None:
    calibration, rng = Calibration(), random.Random(0)
    for request in range(40):
        for _ in range(25):
            tree = Tree([1, 2], [-1, 0], confidences=[0.9, 0.2])
            cells, _ = calibration.estimate(request, tree)
            emitted = [1 if rng.random() < 0.3 else 5, 2 if rng.random() < 0.7 else 5]
            calibration.learn(request, tree, cells, emitted)
        calibration.forget(request)
    _, paths = calibration.estimate(99, tree)
    assert paths == pytest.approx([0.3, 0.3 * 0.7], abs=0.08)


def test_what_was_not_scored_is_learned_from_the_answer_and_what_cannot_be_known_is_not() -> None:
    calibration = Calibration()
    tree = Tree([1, 2, 3], [-1, 0, -1], confidences=[0.5, 0.5, 0.5])
    for _ in range(50):
        cells, _ = calibration.estimate(0, tree)
        calibration.learn(0, tree, cells, [3])  # nothing of it was scored, and the target drew 3
    _, paths = calibration.estimate(0, tree)
    assert paths[0] == pytest.approx(0.5, abs=0.1)  # same cell as the third, which was right
    alone, _ = Calibration().estimate(0, tree)
    assert cells == alone
    assert paths[1] / paths[0] == pytest.approx(0.5, abs=0.1), "nobody saw what follows token 1"


def test_a_request_in_which_drafts_fail_is_told_from_others() -> None:
    calibration = Calibration()
    tree = Tree([1], [-1], confidences=[0.5])
    for number in range(200):
        slot = number % 2
        cells, _ = calibration.estimate(slot, tree)
        calibration.learn(slot, tree, cells, [1 if slot else 2])
    good, bad = (calibration.estimate(slot, tree)[1][0] for slot in (1, 0))
    fresh = calibration.estimate(7, tree)[1][0]
    assert bad < fresh < good
    assert fresh == pytest.approx(0.5, abs=0.1)


def test_claims_that_are_too_sure_are_put_right_for_all_that_the_same_sources_claim() -> None:
    calibration = Calibration()
    for slot in range(30):
        tree = Tree([1], [-1], confidences=[0.9], sources=[1])
        cells, _ = calibration.estimate(slot, tree)
        calibration.learn(slot, tree, cells, [2])
    fresh = [Tree([1], [-1], confidences=[0.5], sources=[source]) for source in (1, 2)]
    estimates = [calibration.estimate(99, tree)[1][0] for tree in fresh]
    assert estimates[0] < 0.1
    assert estimates[1] == pytest.approx(0.5)


# When to rest -----------------------------------------------------------------------------------------


def worked(rest: Rest, steps: int, gain: float) -> int:
    count = 0
    for _ in range(steps):
        if rest.begin():
            rest.worked(gain)
            count += 1
    return count


def test_what_loses_is_tried_ever_more_rarely_and_what_gains_goes_on() -> None:
    assert worked(Rest(), 1000, 1.0) == 1000
    rest = Rest()
    worked(rest, 2000, -1.0)
    assert worked(rest, 10 * LONGEST, -1.0) <= 45
    assert worked(rest, 4 * LONGEST, 1.0) >= 2 * LONGEST


def test_a_step_for_many_requests_says_as_much_as_many_steps() -> None:
    alone, together = Rest(), Rest()
    for _ in range(16):
        alone.begin()
        alone.worked(-1.0)
    assert not alone.resting
    together.begin()
    together.worked(-16.0, 16)
    assert not together.resting
    together.worked(-16.0, 16)
    assert together.resting
    assert together.steps == 32


def test_in_a_hurry_it_is_judged_before_its_first_steps_are_over() -> None:
    for gain, resting in ((-1.0, True), (1.0, False)):
        rest = Rest()
        worked(rest, 3, gain)
        assert not rest.resting
        rest.hurry(50)
        assert rest.resting is resting
    rest = Rest()
    worked(rest, 1, -1.0)
    rest.hurry(50)
    assert [rest.begin() for _ in range(51)] == [False] * 50 + [True]


# The policies -----------------------------------------------------------------------------------------


def best_by_trying(trees: Sequence[Tree], cost: PassCost, nodes: int) -> float:
    """The highest (rows + sum of path probabilities) / cost over all choices that hold every parent."""
    candidates = [(row, node) for row, tree in enumerate(trees) for node in range(len(tree.tokens))]
    paths: dict[tuple[int, int], float] = {}
    for row, node in candidates:
        tree = trees[row]
        above = paths.get((row, tree.parents[node]), 1.0)
        paths[row, node] = above * tree.confidences[node]
    best = 0.0
    for size in range(min(nodes, len(candidates)) + 1):
        for chosen in itertools.combinations(candidates, size):
            if all(trees[r].parents[n] < 0 or (r, trees[r].parents[n]) in chosen for r, n in chosen):
                expected = len(trees) + sum(paths[one] for one in chosen)
                best = max(best, expected / cost.seconds(len(trees) + size))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_throughput_finds_the_best_of_all_choices(seed: int) -> None:
    rng = random.Random(seed)
    cost = PassCost({1: 1, 2: 1.05, 4: 1.1, 6: 1.6, 8: 1.65, 16: 3})
    trees = []
    for _ in range(rng.randint(1, 3)):
        size = rng.randint(1, 5)
        trees.append(
            Tree(
                range(size),
                [rng.randint(-1, node - 1) for node in range(size)],
                confidences=[rng.choice((0.1, 0.35, 0.6, 0.85)) for _ in range(size)],
            )
        )
    seen, nodes = view(len(trees)), rng.randint(2, 8)
    policy = load("throughput", cost)
    policy.allot(seen, [Budget(16, 16)] * len(trees), nodes)
    chosen = policy.choose(seen, trees)
    expected = float(len(trees))
    for tree in chosen:
        paths: list[float] = []
        for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
            paths.append(confidence * (paths[parent] if parent >= 0 else 1))
        expected += sum(paths)
    drafted = sum(len(tree.tokens) for tree in chosen)
    assert drafted <= nodes
    assert expected / cost.seconds(len(trees) + drafted) == pytest.approx(best_by_trying(trees, cost, nodes))


def test_throughput_scores_nothing_where_a_pass_costs_as_many_times_as_it_has_tokens() -> None:
    tree = Tree.chain([1, 2, 3])._replace(confidences=[0.9, 0.9, 0.9])
    for curve, count in (({1: 1.0, 32: 32.0}, 0), ({1: 1.0, 32: 1.1}, 3)):
        policy = load("throughput", PassCost(curve))
        policy.allot(view(), [Budget(16, 16)], 16)
        assert len(policy.choose(view(), [tree])[0].tokens) == count


def test_throughput_drafts_less_for_each_row_of_a_larger_batch() -> None:
    tree = Tree.chain(range(8))._replace(confidences=[0.8] * 8)
    sizes = []
    for rows in (1, 4, 16):
        policy = load("throughput", PassCost(CURVE))
        policy.allot(view(rows), [Budget(64, 64)] * rows, 64)
        sizes.append(len(policy.choose(view(rows), [tree] * rows)[0].tokens))
    assert sizes[0] > sizes[1] > sizes[2]


def test_throughput_rests_where_nothing_is_ever_accepted() -> None:
    policy, given = load("throughput", PassCost({n: 1e-6 * s for n, s in CURVE.items()})), 0
    for _ in range(600):
        budgets = policy.allot(view(), [Budget(8, 8)], 8)
        given += budgets[0].nodes > 0
        trees = policy.choose(view(), [Tree.chain([1, 2]) if budgets[0].nodes else Tree((), ())])
        policy.observe(step(view(), trees, [0], 3e-6))
    assert given < 100


def test_throughput_gives_a_request_fewer_steps_where_those_before_it_lost() -> None:
    policy = load("throughput", PassCost(CURVE))
    given = []
    for slot in (0, 1):
        seen, count = replace(view(), slots=[slot]), 0
        for _ in range(40):
            budgets = policy.allot(seen, [Budget(8, 8)], 8)
            count += budgets[0].nodes > 0
            trees = policy.choose(seen, [Tree.chain([1, 2]) if budgets[0].nodes else Tree((), ())])
            policy.observe(replace(step(seen, trees, [0]), drafting=0.1))
        policy.release([slot])
        given.append(count)
    assert given == [8, 8], "the first steps of the first one are known by its eighth"
    winning = load("throughput", PassCost(CURVE))
    for _ in range(40):
        assert winning.allot(view(), [Budget(8, 8)], 8)[0].nodes
        trees = winning.choose(view(), [Tree.chain([1, 2])._replace(confidences=[0.9, 0.9])])
        winning.observe(replace(step(view(), trees, [len(trees[0].tokens)]), drafting=0.1))


def test_throughput_gives_up_what_takes_longer_than_plain_steps_but_not_what_was_held_up_once() -> None:
    plain, taken = CURVE[1], []
    for drafting in (2.5 * plain, 0.5 * plain):
        policy, given = load("throughput", PassCost(CURVE)), 0
        for _ in range(60):
            budgets = policy.allot(view(), [Budget(8, 8)], 8)
            given += budgets[0].nodes > 0
            trees = policy.choose(view(), [Tree.chain([1, 2]) if budgets[0].nodes else Tree((), ())])
            policy.observe(replace(step(view(), trees, [0]), drafting=drafting))
        taken.append(given)
    assert taken[0] == 2
    assert 2 < taken[1] <= 8
    policy = load("throughput", PassCost(CURVE))
    for turn in range(20):
        assert policy.allot(view(), [Budget(8, 8)], 8)[0].nodes, "it gains, but for one step"
        trees = policy.choose(view(), [Tree.chain([1, 2])._replace(confidences=[0.9, 0.9])])
        drafting = 50 * plain if turn == 1 else 0.1
        policy.observe(replace(step(view(), trees, [len(trees[0].tokens)]), drafting=drafting))


def test_throughput_drafts_nothing_in_a_pass_that_prompts_fill() -> None:
    for curve, nodes in ((CURVE, 0), ({1: 1.0, 64: 1.1}, 16)):
        for known, expected in ((127, nodes), (10, 16)):
            policy = load("throughput", PassCost(curve))
            seen = replace(view(2), starts=[2, 0], ends=[3, known], histories=[[1, 2, 3], [1] * 200])
            budgets = policy.allot(seen, [Budget(16, 16), Budget(0, 0)], 16)
            assert [budget.nodes for budget in budgets] == [expected, 0]


def drawn(depth: int, law: Sequence[float] = (0.5, 0.5)) -> Tree:
    origin = Origin(Drawn.IID, np.array(law))
    return Tree.chain([0] * depth)._replace(origins=dict.fromkeys(range(depth), origin))


def test_throughput_decides_beforehand_how_deep_to_draw_and_cuts_nothing_that_was_drawn() -> None:
    seen = view(coupled=False)
    for accepted, curve, deep in ((4, {1: 1.0, 32: 1.1}, range(4, 9)), (0, CURVE, range(2))):
        policy = load("throughput", PassCost(curve))
        depths = []
        for _ in range(60):
            (budget,) = policy.allot(seen, [Budget(8, 8)], 8)
            trees = [drawn(min(budget))] if min(budget) else [Tree((), ())]
            assert policy.choose(seen, trees) == trees
            depths.append(min(budget))
            policy.observe(step(seen, trees, [min(accepted, min(budget))]))
        assert depths[-1] in deep
        assert any(depths[20:]), "now and then it is tried again"


def test_levels_that_are_wide_count_with_all_their_tokens() -> None:
    levels = Levels()
    wide = Tree([0, 1, 2, 3] * 2, [-1] * 4 + [0] * 4)
    for _ in range(50):
        levels.learn(wide, 1)
    cost = PassCost({1: 1.0, 5: 1.5, 32: 12.0})
    assert levels.best(1, 1, Budget(8, 8), cost) == 1


def test_fixed_shares_evenly_and_keeps_to_its_options() -> None:
    limits = [Budget(16, 16), Budget(0, 0), Budget(1, 9), Budget(16, 2)]
    assert load("fixed").allot(view(4), limits, 16) == [
        Budget(6, 16),
        Budget(0, 0),
        Budget(1, 9),
        Budget(5, 2),
    ]
    assert load("fixed:nodes=3,depth=1").allot(view(), [Budget(9, 9)], 16) == [Budget(3, 1)]


def test_the_heuristic_goes_two_up_and_one_down_for_each_request() -> None:
    policy, seen = load("heuristic"), view(2)
    lengths = []
    for accepted in ((5, 0), (7, 1), (3, 0)):
        budgets = policy.allot(seen, [Budget(32, 32)] * 2, 64)
        lengths.append([min(budget) for budget in budgets])
        trees = policy.choose(seen, [Tree.chain(range(min(budget))) for budget in budgets])
        policy.observe(step(seen, trees, accepted))
    assert lengths == [[5, 5], [7, 4], [9, 3]]
    policy.allot(seen, [Budget(32, 32)] * 2, 64)
    policy.observe(step(seen, policy.choose(seen, [Tree((), ())] * 2), (0, 0)))
    assert min(policy.allot(seen, [Budget(32, 32)] * 2, 64)[1]) == 2, "no draft, no change"
    policy.release([0])
    assert min(policy.allot(seen, [Budget(32, 32)] * 2, 64)[0]) == 5


def test_entropy_stops_at_tokens_in_doubt_and_behind_laws_in_doubt() -> None:
    policy = load("entropy:confidence=0.4,nats=0.6")
    tree = Tree([1, 2, 3, 4], [-1, 0, 1, -1], confidences=[0.9, 0.3, 0.9, 0.5])
    assert policy.choose(view(), [tree])[0].tokens == [1, 4]
    sure = Origin(Drawn.IID, np.array([0.9, 0.1]))
    unsure = Origin(Drawn.IID, np.array([0.5, 0.5]))
    tree = Tree([0, 1, 0, 1], [-1, -1, 0, 0], {0: sure, 1: sure, 2: unsure, 3: unsure})
    kept = policy.choose(view(coupled=False), [tree])[0]
    assert (kept.tokens, set(kept.origins)) == ([0, 1], {0, 1})


WRONG: Mapping[str, str] = {
    "luck": "there is no policy 'luck'; there are entropy, fixed, heuristic, throughput",
    "fixed:colour=red": "policy fixed has no option 'colour'; it has nodes, depth",
    "fixed:nodes=-1": "fixed:nodes must be 0 or more, got -1",
    "fixed:depth=x": "fixed:depth must be a whole number, got 'x'",
    "heuristic:first=0": "heuristic:first must be at least 1, got 0",
    "entropy:nats=nan": "entropy:nats must be 0 or more, got nan",
    "entropy:confidence=2": "entropy:confidence must be from 0 to 1, got 2",
    "throughput:nodes=-1": "throughput:nodes must be 0 or more, got -1",
    "throughput:candidates=0": "throughput:candidates must be at least 1, got 0",
}


@pytest.mark.parametrize("spec", WRONG)
def test_a_wrong_policy_or_option_is_refused_with_the_legal_ones(spec: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[spec]):
        load(spec)


def test_sizes_of_the_curve_rise() -> None:
    assert list(SIZES) == sorted(set(SIZES))
    assert SIZES[0] == 1
