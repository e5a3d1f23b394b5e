"""Several drafters in one tree: shared prefixes, who proposed what, parts that are not worth their time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from paceline.core import NOTHING, Budget, Draft, Drawn, Origin, Scores, Step, Tree, Verdict, View
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.mixture import Mixture, merged
from paceline.noise import choice_seed, stream_seed
from paceline.rules import load as load_rule
from paceline.targets.table import TableTarget
from tests.toys import Quiet
from tests.unit.test_policies import view

INFO = TableTarget().info


def test_paths_that_begin_alike_share_their_nodes_and_say_who_proposed_them() -> None:
    one = Tree.chain([1, 2, 3])._replace(confidences=[0.5, 0.5, 0.5])
    two = Tree([1, 4, 2], [-1, -1, 0], confidences=[0.6, 0.1, 0.2])
    tree = merged([one, two], 9)
    assert tree.tokens == [1, 2, 3, 4]
    assert tree.parents == [-1, 0, 1, -1]
    assert tree.sources == [3, 3, 1, 2]
    assert tree.confidences == pytest.approx([0.8, 0.6, 0.5, 0.1])


def test_equal_siblings_of_one_part_are_one_token() -> None:
    tree = merged([Tree([1, 1, 2], [-1, -1, 1]), Tree([3], [-1])], 9)
    assert (tree.tokens, tree.parents, tree.sources) == ([1, 2, 3], [-1, 0, -1], [1, 1, 2])
    assert tree.confidences == [0.5, 0.5, 0.5]


def test_a_tree_that_stands_alone_is_as_its_part_made_it() -> None:
    alone = Tree([1, 2], [-1, 0], confidences=[0.3, 0.2])
    assert merged([NOTHING, alone, NOTHING], 2) == alone._replace(sources=[2, 2])
    assert merged([NOTHING, alone], 1).tokens == [1]
    assert merged([NOTHING, NOTHING], 9) == NOTHING


def test_of_what_exceeds_the_budget_the_likeliest_is_left_with_all_above_it() -> None:
    one = Tree.chain([1, 2, 3])._replace(confidences=[0.9, 0.9, 0.9])
    two = Tree([4, 5], [-1, -1], confidences=[0.3, 0.75])
    tree = merged([one, two], 4)
    assert (tree.tokens, tree.parents) == ([1, 2, 3, 5], [-1, 0, 1, -1])


def test_drawn_tokens_stand_beside_fixed_ones_behind_them_and_none_is_left_out() -> None:
    law = Origin(Drawn.IID, np.array([0.0, 0.5, 0.5]))
    drawn = Tree([1, 1, 2], [-1, -1, 0], {0: law, 1: law, 2: law})
    tree = merged([drawn, Tree.chain([1, 2])], 9, coupled=False)
    assert tree.tokens == [1, 2, 1, 1, 2]
    assert tree.parents == [-1, 0, -1, -1, 2]
    assert set(tree.origins) == {2, 3, 4}
    assert tree.sources == [2, 2, 1, 1, 1]


class Says(Quiet):
    """Proposes a chain, and notes what it was asked and shown."""

    def __init__(self, *tokens: int, needs: frozenset[str] = frozenset()) -> None:
        self.tokens = tokens
        self.needs, self.whole = needs, bool(needs)
        self.asked: list[Budget] = []
        self.seeds: list[int] = []
        self.shown = 0

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        self.asked += budgets
        self.seeds += view.seeds
        return [Tree.chain(self.tokens[: min(budget)]) for budget in budgets]

    def observe(self, step: Step) -> None:
        self.shown += 1


def steps(mixture: Mixture, count: int, truth: Sequence[int]) -> None:
    seen = view()
    for _ in range(count):
        tree = mixture.propose(seen, [Budget(8, 8)])[0]
        path: list[int] = []
        above = -1
        for node, parent in enumerate(tree.parents):
            if parent == above and len(path) < len(truth) and tree.tokens[node] == truth[len(path)]:
                path.append(node + 1)
                above = node
        draft = Draft.pack(seen, [tree])
        mixture.observe(Step(seen, draft, Scores(np.zeros(0)), Verdict([path], [9]), 1e-2))


def test_a_part_that_brings_nothing_of_its_own_rests_and_one_that_does_goes_on() -> None:
    good, same, bad = Says(1, 2, 3), Says(1, 2), Says(5, 6)
    steps(Mixture({"good": good, "same": same, "bad": bad}), 600, [1, 2, 3])
    assert len(good.asked) == good.shown == 600
    for idle in (same, bad):
        assert 30 < len(idle.asked) < 150
        assert idle.shown < 300


class Sometimes(Says):
    """Sure of the truth in every other step, and silent in between."""

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        self.asked += budgets
        if len(self.asked) % 2:
            return [NOTHING for _ in budgets]
        return [Tree.chain(self.tokens)._replace(confidences=[0.95] * len(self.tokens))]


class Counting(Says):
    """Notes whether it was asked where the other was silent."""

    def __init__(self, other: Says, *tokens: int) -> None:
        super().__init__(*tokens)
        self.other, self.where = other, [0, 0]

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        self.where[len(self.other.asked) % 2] += 1
        return super().propose(view, budgets)


def test_a_part_rests_where_those_before_it_are_sure_and_works_where_they_know_nothing() -> None:
    first = Sometimes(1, 2, 3)
    second = Counting(first, 1, 2)
    steps(Mixture({"first": first, "second": second}), 600, [1, 2, 3])
    sure, silent = second.where
    assert silent == 300
    assert 30 < sure < 120


def test_a_part_that_needs_features_sees_every_step() -> None:
    head = Says(5, needs=frozenset({"last"}))
    steps(Mixture({"good": Says(1, 2, 3), "head": head}), 200, [1, 2, 3])
    assert len(head.asked) < 150
    assert head.shown == 200


def test_under_a_rule_that_compares_laws_parts_share_the_budget_and_have_noise_of_their_own() -> None:
    one, two = Says(1, 2, 3, 4), Says(5, 6, 7, 8)
    tree = Mixture({"one": one, "two": two}).propose(view(coupled=False), [Budget(7, 7)])[0]
    assert len(tree.tokens) <= 7
    assert one.asked == two.asked == [Budget(3, 7)]
    assert one.seeds == [0]
    assert two.seeds == [stream_seed(0, 1)]
    assert stream_seed(5, 1) not in {5, stream_seed(5, 2), *(choice_seed(5, n) for n in range(128))}


def test_a_mixture_is_written_with_plus_signs_and_has_what_its_parts_have() -> None:
    mixture = load("suffix:min_probability=1e-6+markov:widths=2x2x1", INFO)
    assert isinstance(mixture, Mixture)
    assert mixture.branches
    assert mixture.drawn == {Drawn.FIXED, Drawn.IID}
    assert not isinstance(load("suffix:min_probability=1e+0", INFO), Mixture)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("suffix+sufix", "there is no drafter 'sufix'"),
        ("suffix+", "there is no drafter ''"),
        ("suffix+ngram:colour=1", "drafter ngram has no option 'colour'"),
        ("ngram+ngram", r"drafter ngram\+ngram: a mixture has different parts"),
        ("+".join(f"ngram:tokens={n}" for n in range(1, 10)), "a mixture has 2 to 8 different parts, got"),
    ],
)
def test_a_wrong_mixture_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spec, INFO)


@pytest.mark.parametrize("rule", ["rejection", "kseq"])
def test_a_rule_that_does_not_take_it_says_so(rule: str) -> None:
    target = TableTarget()
    with pytest.raises(IncompatibleDrafter, match=f"rule {rule} takes .*drafter suffix.markov proposes"):
        Engine(
            target,
            {"suffix+markov": load("suffix+markov", target.info)},
            drafter="suffix+markov",
            rule=load_rule(rule),
        )
