"""The router gives rows to their drafters, cuts what is too large and refuses what is no tree."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from paceline.core import NOTHING, Budget, Step, Tree, View
from paceline.engine import Engine
from paceline.errors import IncompatibleDrafter
from paceline.laws import Controls
from paceline.router import Router
from paceline.rules.match import match
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.toys import Quiet


class Fixed(Quiet):
    """Always the same tree; remembers what it saw."""

    def __init__(self, tree: Tree = NOTHING, needs: frozenset[str] = frozenset()) -> None:
        self.tree = tree
        self.needs = needs
        self.seen: list[Step] = []
        self.released: list[int] = []

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        return [self.tree if min(budget) else NOTHING for budget in budgets]

    def observe(self, step: Step) -> None:
        self.seen.append(step)

    def release(self, slots: Sequence[int]) -> None:
        self.released += slots


def view(*names: str) -> View:
    rows = len(names)
    return View(
        list(range(rows)),
        [[1, 2]] * rows,
        [1] * rows,
        [2] * rows,
        [Controls(SamplingParams(), (), [])] * rows,
        [0] * rows,
        [1] * rows,
        names,
    )


WIDE = Tree([1, 2, 3, 4, 5, 6], [-1, 0, 1, -1, 3, 0])


@pytest.mark.parametrize(
    ("budget", "tokens", "parents"),
    [
        (Budget(6, 3), [1, 2, 3, 4, 5, 6], [-1, 0, 1, -1, 3, 0]),
        (Budget(4, 9), [1, 2, 3, 4], [-1, 0, 1, -1]),
        (Budget(9, 2), [1, 2, 4, 5, 6], [-1, 0, -1, 2, 0]),
        (Budget(3, 1), [1, 4], [-1, -1]),
        (Budget(1, 1), [1], [-1]),
    ],
)
def test_a_tree_over_its_budget_is_cut_to_it(budget: Budget, tokens: list[int], parents: list[int]) -> None:
    tree = Router({"d": Fixed(WIDE)}, 10, match).propose(view("d"), [budget])[0]
    assert (list(tree.tokens), list(tree.parents)) == (tokens, parents)


def test_confidences_are_cut_with_their_tokens() -> None:
    tree = WIDE._replace(confidences=[0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    cut = Router({"d": Fixed(tree)}, 10, match).propose(view("d"), [Budget(9, 2)])[0]
    assert list(cut.confidences) == [0.6, 0.5, 0.3, 0.2, 0.1]


class Stubborn(Fixed):
    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        return [self.tree] * len(budgets)


@pytest.mark.parametrize("budget", [Budget(0, 0), Budget(0, 3), Budget(3, 0)])
def test_without_budget_nothing_is_left(budget: Budget) -> None:
    tree = Router({"d": Stubborn(WIDE)}, 10, match).propose(view("d"), [budget])[0]
    assert (list(tree.tokens), list(tree.parents)) == ([], [])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Tree([1, 10], [-1, 0]), "drafter bad: a token outside 0 to 9"),
        (Tree([-1], [-1]), "drafter bad: a token outside 0 to 9"),
        (Tree([1, 2], [-1, 1]), "drafter bad: parent 1 of node 1"),
        (Tree([1], [-2]), "drafter bad: parent -2 of node 0"),
        (Tree([1, 2], [-1]), "drafter bad: 2 tokens but 1 parents"),
        (Tree([1, 2], [-1, 0], confidences=[0.5]), "drafter bad: 2 tokens but 1 confidences"),
    ],
)
def test_what_is_no_tree_is_refused_with_the_drafters_name(tree: Tree, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Router({"bad": Fixed(tree)}, 10, match).propose(view("bad"), [Budget(8, 8)])


def test_a_drafter_that_forgets_a_row_is_refused() -> None:
    class Forgetful(Fixed):
        def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
            return [NOTHING]

    with pytest.raises(ValueError, match="drafter lazy: 1 trees for 2 rows"):
        Router({"lazy": Forgetful()}, 10, match).propose(view("lazy", "lazy"), [Budget(8, 8)] * 2)


def test_each_drafter_proposes_for_its_rows_sees_them_and_is_told_of_their_end() -> None:
    target = TableTarget()
    one, two = Fixed(Tree([1], [-1])), Fixed(Tree([2, 3], [-1, 0]), frozenset({"last"}))
    engine = Engine(target, {"one": one, "two": two}, drafter="one", max_batch=4)
    params = [SamplingParams(max_tokens=n + 2, seed=n) for n in range(4)]
    engine.generate([[n + 1] for n in range(4)], params, ["one", "two", "two", "one"])
    for drafter, prompts, width in ((one, {1, 4}, 1), (two, {2, 3}, 2)):
        assert {history[0] for step in drafter.seen for history in step.view.histories} == prompts
        assert {slot for step in drafter.seen for slot in step.view.slots} == set(drafter.released)
        assert len(drafter.released) == 2
        assert max(int(step.draft.offsets[1]) for step in drafter.seen) == 1 + width
    assert all(len(step.scores.features["last"]) == len(step.draft.tokens) for step in two.seen)


def test_only_the_features_that_these_rows_need_are_computed() -> None:
    router = Router({"one": Fixed(), "two": Fixed(needs=frozenset({"last"}))}, 10, match)
    assert router.needs == router.taps(view("one", "two")) == {"last"}
    assert router.taps(view("one", "one")) == frozenset()


def test_a_drafter_that_the_target_cannot_serve_is_refused_at_once() -> None:
    with pytest.raises(IncompatibleDrafter, match=r"drafter head needs hidden\.2; table offers last"):
        Engine(TableTarget(), {"head": Fixed(needs=frozenset({"hidden.2"}))}, drafter="head")
