"""What every rule must hold to; a new file in paceline/rules is found and tested by itself.

That a rule draws from the right law is tested in tests/lossless.
"""

from __future__ import annotations

import pytest

from paceline.core import Draft, Rule, Tree, View
from paceline.laws import Controls, Laws
from paceline.noise import Noise
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.discovery import RULES


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]


def step(seed: int, tree: Tree) -> tuple[Draft, Laws, Noise]:
    """One row that decodes with this tree and one that still reads its prompt."""
    target, params = TableTarget(), SamplingParams(seed=seed)
    texts = [[1, 2, 3, 4], [5, 6, 7, 8, 9]]
    view = View(
        [0, 1],
        texts,
        [0, 0],
        [4, 2],
        [Controls(params, (), text) for text in texts],
        [seed, seed],
        [4, 5],
        ["d", "d"],
    )
    draft = Draft.pack(view, [tree, Tree((), ())])
    return draft, Laws(target.forward(draft, frozenset()), draft, view), Noise(view.seeds)


def test_paths_go_down_from_the_root_and_a_token_follows(rule: Rule) -> None:
    tree = Tree([*range(12), *range(12)], [-1] * 12 + [0] * 12)
    lengths = set()
    for seed in range(40):
        draft, laws, noise = step(seed, tree)
        verdict = rule(draft, laws, noise)
        above = draft.roots[0]
        for node in verdict.paths[0]:
            assert draft.parents[node] == above
            above = node
        assert 0 <= verdict.next_tokens[0] < 12
        lengths.add(len(verdict.paths[0]))
    assert lengths == {1, 2}


def test_a_row_that_draws_nothing_keeps_nothing(rule: Rule) -> None:
    verdict = rule(*step(1, Tree.chain([1, 2])))
    assert (verdict.paths[1], verdict.next_tokens[1]) == ([], -1)


def test_it_is_a_pure_function(rule: Rule) -> None:
    assert rule(*step(2, Tree.chain([1, 2]))) == rule(*step(2, Tree.chain([1, 2])))
