"""Policies and mixtures under the rules that compare laws, worked out over all drafts and all coins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from paceline.core import Budget, Drawn, Policy, Promise, Tree, View
from paceline.laws import Controls
from paceline.mixture import merged
from paceline.policies import load, names
from paceline.policies.entropy import Entropy
from paceline.sampling import SamplingParams
from tests.discovery import RULES
from tests.lossless.enumeration import Chance, Path, enumerated, grown, laws

TOLERANCE = 1e-12
CHAINS = sorted(name for name, rule in RULES.items() if rule.promise is Promise.LAW and not rule.trees)
TREES = ["recursive", "traversal"]
VIEW = View([0], [[1, 2, 3]], [2], [3], [Controls(SamplingParams(), (), [])], [0], [1], ["d"], coupled=False)
SOME_OPTIONS = {"entropy": "entropy:nats=1.0,confidence=0.3", "fixed": "fixed:depth=2"}

Drafts = Callable[[Chance], Tree]


class ByToken(Entropy):
    """Broken: leaves out drawn tokens that were unlikely."""

    def choose(self, view: View, trees: Sequence[Tree]) -> list[Tree]:
        cut = []
        for tree in trees:
            kept: list[int] = []
            for node, parent in enumerate(tree.parents):
                likely = tree.origins[node].law[tree.tokens[node]] >= 0.3
                if likely and (parent < 0 or parent in kept):
                    kept.append(node)
            cut.append(tree.some(kept))
        return cut


def chosen(policy: Callable[[], Policy], whole: Drafts) -> Drafts:
    def draft(chance: Chance) -> Tree:
        own = policy()
        own.allot(VIEW, [Budget(9, 9)], 9)
        return own.choose(VIEW, [whole(chance)])[0]

    return draft


@pytest.mark.parametrize("policy", names())
@pytest.mark.parametrize(
    ("rule", "widths"), [*((r, (1, 1, 1)) for r in CHAINS), *((r, (2, 2)) for r in TREES)]
)
def test_what_a_policy_leaves_of_drawn_trees_gives_the_targets_law(
    rule: str, widths: tuple[int, ...], policy: str
) -> None:
    p, q = laws("random", 3, 3, 1)
    spec = SOME_OPTIONS.get(policy, policy)
    draft = chosen(lambda: load(spec), grown(q, widths, Drawn.IID, budget=Budget(6, 3)))
    one = enumerated(RULES[rule], p, draft)
    assert one.error <= TOLERANCE
    assert one.accepted > 0.1


@pytest.mark.parametrize("rule", [*CHAINS, *TREES])
def test_a_policy_that_looks_at_drawn_tokens_is_caught(rule: str) -> None:
    p, q = laws("random", 4, 4, 3)
    draft = chosen(lambda: ByToken(2.0, 0.3), grown(q, (1, 1, 1), Drawn.IID))
    assert enumerated(RULES[rule], p, draft).variation > 0.05


def fixed(q: dict[Path, np.ndarray]) -> Tree:
    """The likeliest path of two tokens, and the runner-up of its first."""
    first, second = np.argsort(-q[()])[:2].tolist()
    return Tree([first, int(q[first,].argmax()), second], [-1, 0, -1])


@pytest.mark.parametrize("how", [Drawn.IID, Drawn.WITHOUT_REPLACEMENT])
@pytest.mark.parametrize("rule", TREES)
def test_a_mixture_of_fixed_and_drawn_tokens_gives_the_targets_law_and_a_merged_one_does_not(
    rule: str, how: Drawn
) -> None:
    p, q = laws("random", 3, 3, 1)
    whole = grown(q, (2, 1), how, budget=Budget(4, 2))
    beside = enumerated(RULES[rule], p, lambda chance: merged([whole(chance), fixed(q)], 7, coupled=False))
    assert beside.error <= TOLERANCE
    assert beside.accepted > 0.4

    def shared(chance: Chance) -> Tree:
        """Broken: a drawn token that is also fixed is not scored again."""
        drawn = whole(chance)
        tree = merged([fixed(q), drawn], 7)
        origins = {}
        for node in range(3, len(tree.tokens)):
            own = next(n for n, token in enumerate(drawn.tokens) if token == tree.tokens[node])
            origins[node] = drawn.origins[own]
        return Tree(tree.tokens, tree.parents, origins)

    assert enumerated(RULES[rule], p, shared).variation > 1e-3
