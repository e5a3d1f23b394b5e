"""What rules that compare laws need of drafters, and that the engine holds drafters to it.

Non-anticipating: whether a token is verified is decided before it is drawn. Truthful: the law it carries is
the one it was drawn from. `grow` keeps both by construction (tests/unit/test_drafting.py); a drafter that
makes its trees otherwise is checked by the router as far as can be, and by the rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from paceline.core import Budget, Drawn, Origin, Rule, Tree, View
from paceline.engine import Engine
from paceline.rules.block import block
from paceline.rules.match import match
from paceline.rules.recursive import recursive
from paceline.rules.traversal import traversal
from paceline.sampling import SamplingParams
from tests.lossless.law_judge import ALPHA, SETTINGS, drafters, p_values, target
from tests.toys import Quiet, Sampling

V = 5
EVEN = np.full(V, 1 / V)


class Says(Quiet):
    """Proposes one tree, whatever the budget, where there is one."""

    def __init__(self, tree: Tree, drawn: frozenset[Drawn] = frozenset({Drawn.IID}), branches: bool = True):
        self.tree = tree
        self.drawn = drawn
        self.branches = branches

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        return [self.tree if min(budget) else Tree((), ()) for budget in budgets]


def refused(drafter: Quiet, rule: Rule, **options: int) -> bool:
    """Whether nothing is scored of what the drafter proposes."""
    engine = Engine(target(), {"odd": drafter}, drafter="odd", rule=rule, **options)
    (done,) = engine.generate([1, 2, 3], SamplingParams(seed=1, max_tokens=6))
    assert bool(done.stats.drafted) != bool(engine.load.draft_failures)
    return bool(engine.load.draft_failures)


def drawn_chain(law: np.ndarray = EVEN, length: int = 2, how: Drawn = Drawn.IID) -> Tree:
    origins = {node: Origin(how, law) for node in range(length)}
    return Tree.chain([1] * length)._replace(origins=origins)


@pytest.mark.parametrize("rule", [recursive, traversal, block], ids=lambda rule: rule.name)
def test_drawn_tokens_over_the_budget_are_refused_not_cut(
    rule: Rule, caplog: pytest.LogCaptureFixture
) -> None:
    assert refused(Says(drawn_chain(length=9), branches=False), rule, nodes=16)
    assert re.search(r"drafter odd: 9 tokens, 9 deep, exceed .*cut after the draw", caplog.text)


def test_fixed_tokens_over_the_budget_are_cut_under_any_rule() -> None:
    for rule in (match, recursive, traversal):
        assert not refused(Says(Tree.chain([1] * 30), frozenset({Drawn.FIXED})), rule, nodes=16)


def test_where_tokens_are_compared_drawn_ones_may_be_cut() -> None:
    assert not refused(Says(drawn_chain(length=30)), match, nodes=16)


@pytest.mark.parametrize(
    ("tree", "declared", "message"),
    [
        (Tree.chain([1, 1]), {Drawn.IID}, "drafter odd: FIXED not declared"),
        (drawn_chain(), {Drawn.FIXED}, "drafter odd: IID not declared"),
        (drawn_chain(how=Drawn.WITHOUT_REPLACEMENT), {Drawn.IID}, "WITHOUT_REPLACEMENT not declared"),
        (drawn_chain(how=Drawn.COUPLED), {Drawn.IID}, "drafter odd: COUPLED not declared"),
        (drawn_chain(2 * EVEN), {Drawn.IID}, "drafter odd: a law is .* got 5 that sum to 2"),
        (drawn_chain(EVEN[:4]), {Drawn.IID}, "drafter odd: a law is .* got 4 that sum to 0.8"),
        (drawn_chain(EVEN * np.nan), {Drawn.IID}, "drafter odd: a law is .* sum to nan"),
        (drawn_chain(np.eye(V)[2]), {Drawn.IID}, "token 1 was drawn from a law that excludes it"),
    ],
)
def test_false_declarations_are_refused(
    tree: Tree, declared: set[Drawn], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert refused(Says(tree, frozenset(declared)), recursive)
    assert re.search(message, caplog.text)


def test_a_branch_of_a_drafter_that_declares_chains_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    branch = Tree([1, 2], [-1, -1], {0: Origin(Drawn.IID, EVEN), 1: Origin(Drawn.IID, EVEN)})
    assert refused(Says(branch, branches=False), recursive)
    assert "drafter odd: declares chains, proposed a branch" in caplog.text


# What would come of it: drafters that the checks cannot see through ------------------------------------


class Changed(Sampling):
    """Changes its honest trees before handing them over."""

    change: Callable[[Tree], Tree]

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        trees = super().propose(view, budgets)
        return [self.change(tree) if not view.coupled else tree for tree in trees]


class DropsUnlikely(Changed):
    def change(self, tree: Tree) -> Tree:
        kept = 0
        while kept < len(tree.tokens) and tree.origins[kept].law[tree.tokens[kept]] > 0.3:
            kept += 1
        origins = {node: tree.origins[node] for node in range(kept)}
        return Tree(tree.tokens[:kept], tree.parents[:kept], origins)


class SaysAnotherTemperature(Changed):
    def change(self, tree: Tree) -> Tree:
        origins = {
            node: origin._replace(law=origin.law**0.5 / (origin.law**0.5).sum())
            for node, origin in tree.origins.items()
        }
        return tree._replace(origins=origins)


class SaysItDrewTheLikeliest(Changed):
    def change(self, tree: Tree) -> Tree:
        return tree._replace(
            tokens=[int(tree.origins[node].law.argmax()) for node in range(len(tree.tokens))]
        )


class SaysItDrewNothing(Changed):
    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.drawn = frozenset({Drawn.FIXED})

    def change(self, tree: Tree) -> Tree:
        return Tree(tree.tokens, tree.parents)


FALSE = [DropsUnlikely, SaysAnotherTemperature, SaysItDrewTheLikeliest]


@pytest.mark.parametrize("kind", FALSE)
@pytest.mark.parametrize("rule", [recursive, block], ids=lambda rule: rule.name)
def test_the_laws_of_answers_show_a_drafter_that_lies(rule: Rule, kind: type[Changed]) -> None:
    liar = kind(target().table, (1, 1), "iid")
    assert p_values(rule, liar, SETTINGS["temperature"], 3000).smallest < ALPHA


@pytest.mark.parametrize("kind", [*FALSE, SaysItDrewNothing])
def test_matching_is_exact_whatever_drafters_say(kind: type[Changed]) -> None:
    liar = kind(target().table, (1, 1), "iid")
    assert p_values(match, liar, SETTINGS["temperature"], 1000).smallest > ALPHA


def test_calling_drawn_tokens_fixed_costs_acceptance_but_not_the_law() -> None:
    """A token drawn before the target's coins are thrown is as good as chosen, if it is alone."""
    found = p_values(
        recursive, SaysItDrewNothing(target().table, (1, 1), "iid"), SETTINGS["temperature"], 2000
    )
    honest = p_values(recursive, drafters()["drawn chain"], SETTINGS["temperature"], 2000)
    assert found.smallest > ALPHA
    assert found.accepted < 0.9 * honest.accepted
