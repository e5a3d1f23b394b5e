"""What a rule sees of a row, what makes a rule of a function, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from paceline.core import Draft, Drawn, Origin, Promise, Tree, View
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.noise import Noise
from paceline.rules import load
from paceline.targets.table import TableTarget
from paceline.verify import Outcome, Row, RowRule, refusal, rule, takes
from tests.discovery import RULES
from tests.toys import Likeliest, Sampling

V = 4
LAW = np.array([0.4, 0.3, 0.2, 0.1])


class CountedLaws:
    """The same law everywhere; counts how often it was worked out."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def law(self, node: int) -> np.ndarray:
        self.asked.append(node)
        return LAW

    def draw(self, node: int, noise: Noise) -> int:
        return node % V


def see(tree: Tree, look: object, histories: Sequence[Sequence[int]] = ((3, 3), (1, 2))) -> list[object]:
    """What a rule can find out about the second row: `look(row)` is called with it."""
    found: list[object] = []

    @rule(Promise.TOKENS, takes=frozenset(Drawn))
    def looking(row: Row) -> Outcome:
        if row.token(row.root) == 2:
            found.append(look(row))  # type: ignore[operator]
        return [], 0

    view = View(
        [0, 1],
        histories,
        [0, 0],
        [2, 2],
        [None] * 2,
        [5, 6],
        [1, 1],
        ["d"] * 2,  # type: ignore[list-item]
    )
    looking(Draft.pack(view, [Tree([0], [-1]), tree]), CountedLaws(), Noise(view.seeds))  # type: ignore
    return found


TREE = Tree([1, 2, 1, 3], [-1, -1, 0, 0])


def test_a_row_is_a_tree_below_its_root() -> None:
    def look(row: Row) -> tuple[object, ...]:
        first, second, below, last = row.chain()
        assert row.children(row.root) == [first, second]
        assert row.children(first) == [below, last]
        assert row.children(second) == row.children(last) == []
        assert row.parent(below) == first
        assert row.parent(second) == row.root
        return tuple(row.token(node) for node in row.chain())

    assert see(TREE, look) == [(1, 2, 1, 3)]


def test_a_law_is_worked_out_once_and_only_where_asked_for() -> None:
    def look(row: Row) -> list[int]:
        for _ in range(3):
            assert row.law(row.root) is LAW
            row.proposal(row.chain()[0])
            row.proposal(row.chain()[2])
        return [node - row.root for node in row._laws.asked]  # type: ignore[attr-defined]

    assert see(TREE, look) == [[0, 1]]


def proposals(tree: Tree) -> list[object]:
    return see(tree, lambda row: [row.proposal(node).tolist() for node in row.chain()])


def test_the_proposal_of_a_fixed_token_is_that_token() -> None:
    assert proposals(Tree([1, 2], [-1, 0])) == [[[0, 1, 0, 0], [0, 0, 1, 0]]]


def test_the_proposal_of_an_independent_token_is_its_law() -> None:
    origins = {node: Origin(Drawn.IID, LAW.astype(np.float32)) for node in range(2)}
    [[first, second]] = proposals(Tree([1, 1], [-1, -1], origins))
    assert first == second == pytest.approx(LAW, rel=1e-6)
    assert sum(first) == pytest.approx(1, rel=1e-15)


def test_without_replacement_earlier_siblings_of_the_same_law_are_left_out() -> None:
    other, without = LAW[::-1].copy(), Drawn.WITHOUT_REPLACEMENT
    origins = {0: Origin(without, LAW), 1: Origin(without, other), 3: Origin(without, LAW)}
    origins[4] = Origin(without, LAW)
    [found] = proposals(Tree([0, 3, 2, 1, 3], [-1] * 5, origins))
    assert found[0] == pytest.approx(LAW)
    assert found[1] == pytest.approx(other)
    assert found[2] == [0, 0, 1, 0]
    assert found[3] == pytest.approx([0, 0.5, 1 / 3, 1 / 6])
    assert found[4] == pytest.approx([0, 0, 2 / 3, 1 / 3])


@pytest.mark.parametrize("how", [Drawn.IID, Drawn.WITHOUT_REPLACEMENT])
def test_a_token_that_its_law_excludes_is_a_false_declaration(how: Drawn) -> None:
    with pytest.raises(ValueError, match="holds token 1, which the law it was drawn from excludes"):
        proposals(Tree([1], [-1], {0: Origin(how, np.array([1.0, 0, 0, 0]))}))


def test_drawing_a_token_twice_without_replacement_is_a_false_declaration() -> None:
    certain = np.array([0.0, 1.0, 0, 0])
    for law in (LAW, certain):
        origins = {node: Origin(Drawn.WITHOUT_REPLACEMENT, law) for node in range(2)}
        with pytest.raises(ValueError, match="holds token 1, which the law it was drawn from excludes"):
            proposals(Tree([1, 1], [-1, -1], origins))


def test_coins_belong_to_nodes_and_draws_to_the_step() -> None:
    def look(row: Row) -> list[object]:
        first = row.chain()[0]
        noise, position = Noise([5, 6]), 2
        return [
            row.accepts(first, p, 1.0) == noise.accepts(1, position, 1, p, 1.0) for p in np.linspace(0, 1, 50)
        ] + [row.draw(LAW) == noise.choose(1, position, LAW), row.own(first) == first % V]

    assert all(see(TREE, look)[0])  # type: ignore[arg-type]


def test_a_rule_has_the_name_and_page_of_its_function_and_its_options() -> None:
    @rule(Promise.LAW, trees=False)
    def some(row: Row, *, strength: float = 0.5) -> Outcome:
        """Does something."""
        return [], int(10 * strength)

    assert (some.name, some.promise, some.trees) == ("some", Promise.LAW, False)
    assert some.__doc__ == "Does something."
    assert some.with_options(strength=0.25).settings == {"strength": 0.25}
    assert some.settings == {}
    view = View([0], [[1]], [0], [1], [None], [1], [1], ["d"])  # type: ignore[list-item]
    draft = Draft.pack(view, [Tree((), ())])
    for made, token in ((some, 5), (some.with_options(strength=0.25), 2)):
        assert made(draft, CountedLaws(), Noise([1])).next_tokens == [token]  # type: ignore[arg-type]


def test_options_are_checked() -> None:
    def check(**chosen: float) -> None:
        raise ConfigError(f"no: {chosen}")

    @rule(Promise.LOSSY, check=check)
    def fussy(row: Row, *, strength: float = 0.5) -> Outcome:
        return [], 0

    with pytest.raises(ConfigError, match="'strength': 2"):
        fussy.with_options(strength=2)


# Which drafters a rule works with ----------------------------------------------------------------------

TABLE = TableTarget(V).table
DRAFTERS = {
    "chosen": Likeliest(TABLE, (1, 1)),
    "bush": Likeliest(TABLE, (2, 2)),
    "dice": Sampling(TABLE, (1, 1), "iid"),
    "twins": Sampling(TABLE, (2,), "iid"),
    "cards": Sampling(TABLE, (2,), "without_replacement"),
}
REFUSED = {
    "match": set(),
    "typical": set(),
    "top": set(),
    "recursive": set(),
    "traversal": set(),
    "rejection": {"bush", "twins", "cards"},
    "block": {"bush", "twins", "cards"},
    "lenient": {"bush", "twins", "cards"},
    "kseq": {"chosen", "bush", "cards"},
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", sorted(RULES))
def test_an_engine_refuses_pairs_that_do_not_fit_and_names_both(name: str, drafter: str) -> None:
    target, drafters = TableTarget(V), {drafter: DRAFTERS[drafter]}
    reason = refusal(RULES[name], drafter, DRAFTERS[drafter])
    if drafter not in REFUSED[name]:
        assert reason is None
        Engine(target, drafters, drafter=drafter, rule=RULES[name])
        return
    assert reason is not None
    assert "\n" not in reason
    assert reason.startswith(f"rule {name} takes ")
    assert f"; drafter {drafter} proposes " in reason
    with pytest.raises(IncompatibleDrafter, match=re.escape(reason)):
        Engine(target, drafters, drafter=drafter, rule=RULES[name])


def test_what_rules_take_is_said_in_words() -> None:
    assert takes(RULES["kseq"]) == "rule kseq takes trees of tokens that are drawn independently"
    assert takes(RULES["block"]) == (
        "rule block takes chains of tokens that are fixed or drawn independently or drawn without replacement"
    )
    assert takes(load("match")).endswith("or drawn with the target's noise")


def test_one_row_of_many_is_enough_to_refuse() -> None:
    view = View([0, 1], [[1], [2]], [0, 0], [1, 1], [None] * 2, [1, 2], [1, 1], ["d"] * 2)  # type: ignore
    chain, branch = Tree.chain([1, 2]), Tree([1, 2], [-1, -1])
    block = RULES["block"]
    assert isinstance(block, RowRule)
    for trees in ([chain, branch], [branch, chain]):
        with pytest.raises(IncompatibleDrafter, match=r"rule block takes chains .* starts a branch"):
            block(Draft.pack(view, trees), CountedLaws(), Noise([1, 2]))  # type: ignore[arg-type]
    block(Draft.pack(view, [chain, chain]), CountedLaws(), Noise([1, 2]))  # type: ignore[arg-type]


def test_the_first_drafted_token_is_enough_to_refuse() -> None:
    view = View([0], [[1]], [0], [1], [None], [1], [1], ["d"])  # type: ignore[list-item]
    law = Origin(Drawn.IID, LAW)
    kseq = RULES["kseq"]
    for origins, fixed in (({1: law}, 1), ({0: law}, 2), ({0: law, 1: law}, None)):
        draft = Draft.pack(view, [Tree([1, 2], [-1, 0], origins)])
        if fixed is None:
            kseq(draft, CountedLaws(), Noise([1]))  # type: ignore[arg-type]
        else:
            with pytest.raises(IncompatibleDrafter, match=f"token {fixed} of the draft is"):
                kseq(draft, CountedLaws(), Noise([1]))  # type: ignore[arg-type]
