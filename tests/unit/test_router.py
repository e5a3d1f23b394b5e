"""The router gives rows to their drafters, cuts what is too large and puts up with what is no tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from paceline.core import NOTHING, Budget, Drawn, Origin, Step, Tree, View
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import IncompatibleDrafter
from paceline.laws import Controls
from paceline.router import Router
from paceline.rules import load as load_rule
from paceline.rules.match import match
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.toys import Quiet


class Fixed(Quiet):
    """Always the same tree; remembers what it saw."""

    def __init__(self, tree: Tree = NOTHING, needs: frozenset[str] = frozenset()) -> None:
        self.tree = tree
        self.needs, self.whole = needs, bool(needs)
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


FINE = [0.1] * 10


@pytest.mark.parametrize(
    ("tree", "reason", "message"),
    [
        (Tree([1, 10], [-1, 0]), "token", "a token outside 0 to 9"),
        (Tree([-1], [-1]), "token", "a token outside 0 to 9"),
        (Tree([float("nan")], [-1]), "token", "tokens and parents are whole numbers"),
        (Tree([1.0], [-1]), "token", "tokens and parents are whole numbers"),
        (Tree([1, 2], [-1, 1]), "parent", "parent 1 of node 1"),
        (Tree([1], [-2]), "parent", "parent -2 of node 0"),
        (Tree([1, 2], [-1]), "shape", "2 tokens but 1 parents"),
        (Tree([1, 2], [-1, 0], confidences=[0.5]), "shape", "2 tokens but 1 confidences"),
        (Tree([1, 2], [-1, 0], sources=[1]), "shape", "2 tokens but 1 sources"),
        (Tree([1], [-1], {1: Origin(Drawn.IID, FINE)}), "shape", "is not how token 1 was drawn"),
        (Tree([1], [-1], {0: (1, FINE)}), "shape", "is not how token 0 was drawn"),
        (Tree([1], [-1], confidences=[float("nan")]), "confidence", "a confidence outside 0 to 1"),
        (Tree([1], [-1], confidences=[float("inf")]), "confidence", "a confidence outside 0 to 1"),
        ("no tree", "shape", "'no tree' is no tree"),
        (None, "shape", "None is no tree"),
    ],
)
def test_what_is_no_tree_is_not_used_and_counted(
    tree: Tree, reason: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router({"bad": Fixed(tree), "good": Fixed(Tree([3], [-1]))}, 10, match)
    trees = router.propose(view("bad", "good"), [Budget(8, 8)] * 2)
    assert [list(tree.tokens) for tree in trees] == [[], [3]]
    assert router.failures == {"bad": {reason: 1}}
    assert f"drafter bad is of no use in this step ({reason})" in caplog.text
    assert message in caplog.text


def law(*tokens: int, probability: float = 1.0) -> np.ndarray:
    """Some tokens share the probability."""
    return np.bincount(tokens, minlength=10) * probability / len(tokens)


@pytest.mark.parametrize(
    ("drawn", "tokens", "laws", "reason"),
    [
        (Drawn.IID, [1], [law(1, probability=0.9)], "law"),
        (Drawn.IID, [1], [law(1) * np.nan], "law"),
        (Drawn.IID, [1], [law(1)[:9]], "law"),
        (Drawn.IID, [1], [2 * law(1) - law(2)], "law"),
        (Drawn.IID, [2], [law(1, 3)], "law"),
        (Drawn.WITHOUT_REPLACEMENT, [1, 1], [law(1, 3)], "law"),
        (Drawn.COUPLED, [1], [law(1)], "declared"),
        (Drawn.IID, [1, 1, 1], [law(1)], "budget"),
    ],
)
def test_drawn_tokens_that_are_not_what_their_drafter_says_are_not_used(
    drawn: Drawn, tokens: list[int], laws: list[np.ndarray], reason: str
) -> None:
    class Drawing(Fixed):
        drawn = frozenset({Drawn.IID, Drawn.WITHOUT_REPLACEMENT})

    origins = {node: Origin(drawn, laws[0]) for node in range(len(tokens))}
    router = Router({"d": Drawing(Tree(tokens, [-1] * len(tokens), origins))}, 10, load_rule("recursive"))
    (tree,) = router.propose(replace(view("d"), coupled=False), [Budget(2, 2)])
    assert not tree.tokens
    assert router.failures == {"d": {reason: 1}}


def test_a_row_that_gets_no_tree_leaves_the_others_theirs() -> None:
    class Mixed(Fixed):
        def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
            return [Tree([1], [-1]), Tree([99], [-1]), Tree([2], [-1])]

    router = Router({"d": Mixed()}, 10, match)
    trees = router.propose(view("d", "d", "d"), [Budget(8, 8)] * 3)
    assert [list(tree.tokens) for tree in trees] == [[1], [], [2]]
    assert router.failures == {"d": {"token": 1}}


def test_arrays_are_as_good_as_lists() -> None:
    tree = Tree(np.array([1, 2]), np.array([-1, 0]), confidences=np.array([0.5, 0.25]))
    (checked,) = Router({"d": Fixed(tree)}, 10, match).propose(view("d"), [Budget(8, 8)])
    assert checked == Tree([1, 2], [-1, 0], confidences=[0.5, 0.25], sources=[])


def test_a_drafter_that_forgets_a_row_is_not_used() -> None:
    class Forgetful(Fixed):
        def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
            return [NOTHING]

    router = Router({"lazy": Forgetful()}, 10, match)
    assert router.propose(view("lazy", "lazy"), [Budget(8, 8)] * 2) == [NOTHING] * 2
    assert router.failures == {"lazy": {"shape": 1}}


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Faulty(Fixed):
    """Raises, or takes its time, as often as told."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Tree([1], [-1]))
        self.clock = clock
        self.asked = 0
        self.raises = False
        self.takes = 0.0

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        self.asked += 1
        self.clock.now += self.takes
        if self.raises:
            raise RuntimeError("no idea")
        return super().propose(view, budgets)


def test_a_drafter_that_fails_three_times_in_a_minute_is_left_alone_for_half_a_minute() -> None:
    clock = Clock()
    faulty = Faulty(clock)
    router = Router({"d": faulty}, 10, match, clock)

    def ask() -> int:
        return len(router.propose(view("d"), [Budget(8, 8)])[0].tokens)

    faulty.raises = True
    for at in (0, 31, 62):  # three, but not within a minute
        clock.now = at
        assert ask() == 0
        assert not router.off
    clock.now = 70
    assert ask() == 0
    assert router.off == {"d"}
    assert faulty.asked == 4
    clock.now = 99.9
    assert ask() == 0
    assert faulty.asked == 4, "it is left alone"
    clock.now = 100
    assert ask() == 0
    assert (faulty.asked, router.off) == (5, {"d"}), "one failure of a trial is enough"
    faulty.raises = False
    clock.now = 130
    assert ask() == 1
    assert not router.off
    assert router.failures == {"d": {"raised": 5}}


def test_a_drafter_that_takes_too_long_is_used_once_and_then_left_alone() -> None:
    clock = Clock()
    slow = Faulty(clock)
    slow.takes = 2.1
    router = Router({"d": slow}, 10, match, clock)
    lengths = [len(router.propose(view("d"), [Budget(8, 8)])[0].tokens) for _ in range(3)]
    assert lengths == [1, 0, 0]
    assert router.failures == {"d": {"slow": 1}}
    slow.takes = 1.9
    clock.now += 30
    assert len(router.propose(view("d"), [Budget(8, 8)])[0].tokens) == 1
    assert not router.off


def test_a_drafter_that_raises_when_it_observes_or_releases_is_counted_and_no_answer_suffers() -> None:
    class Sulky(Fixed):
        def observe(self, step: Step) -> None:
            raise RuntimeError("no")

        def release(self, slots: Sequence[int]) -> None:
            raise RuntimeError("no")

    target = TableTarget()
    params = SamplingParams(seed=1, max_tokens=9)
    drafters = {"sulky": Sulky(Tree([1], [-1])), "none": load("none", target.info)}
    engine = Engine(target, drafters, drafter="none")
    plain, sulky = engine.generate([[1, 2]] * 2, params, ["none", "sulky"])
    assert sulky.token_ids == plain.token_ids
    assert engine.load.draft_failures == {"sulky": {"raised": 4}}, "three steps, and its end"
    assert engine.load.drafters_off == {"sulky"}


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
