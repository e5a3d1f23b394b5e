"""Stop drafting where the drafter is unsure: behind a law of high entropy, before a token of low confidence.

Whether tokens are drafted below a node is decided by the law they would be drawn from, all of them or none,
never by the tokens: so drawn tokens may be left out under a rule that compares laws, too (docs/policy.md).
Source: the entropy bound of AdaEDL, Agrawal et al., 2024 (arXiv 2410.18351), as one of several such stops.
"""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace

from paceline.core import UNSURE, Array, Budget, Step, Tree, View
from paceline.errors import ConfigError
from paceline.policies._cost import PassCost
from paceline.policies.fixed import ALL, even


class Entropy:
    """Shares evenly, and scores what drafters are sure of."""

    def __init__(self, nats: float, confidence: float) -> None:
        self.nodes = ALL
        self._nats = nats
        self._confidence = confidence

    def allot(self, view: View, limits: Sequence[Budget], nodes: int) -> Sequence[Budget]:
        """An even share for each row."""
        return even(limits, nodes)

    def choose(self, view: View, trees: Sequence[Tree]) -> Sequence[Tree]:
        """Each tree without what is drafted in doubt, and without all below that."""
        return [self._sure(tree) if tree.tokens else tree for tree in trees]

    def _sure(self, tree: Tree) -> Tree:
        kept: list[int] = []
        held = {-1}
        entropies: dict[int, float] = {}
        for node, parent in enumerate(tree.parents):
            origin = tree.origins.get(node)
            if origin is None:
                sure = (tree.confidences[node] if tree.confidences else UNSURE) >= self._confidence
            else:
                if id(origin.law) not in entropies:
                    entropies[id(origin.law)] = _entropy(origin.law)
                sure = entropies[id(origin.law)] <= self._nats
            if sure and parent in held:
                held.add(node)
                kept.append(node)
        return tree.some(kept)

    def observe(self, step: Step) -> None:
        """There is nothing to learn."""

    def release(self, slots: Sequence[int]) -> None:
        """There is nothing to free."""


def _entropy(law: Array) -> float:
    xp = array_namespace(law)
    return float(-xp.sum(xp.where(law > 0, law * xp.log(xp.where(law > 0, law, 1.0)), 0.0)))


def build(cost: PassCost, *, nats: float = 2.0, confidence: float = 0.3) -> Entropy:
    """Stopping in doubt.

    nats        for drawn tokens: the highest entropy of the law that they are drawn from
    confidence  for other tokens: the lowest confidence of the drafter in a token, 0 to 1

    Raises ConfigError for a value out of range.
    """
    if not nats >= 0:
        raise ConfigError(f"entropy:nats must be 0 or more, got {nats}")
    if not 0 <= confidence <= 1:
        raise ConfigError(f"entropy:confidence must be from 0 to 1, got {confidence}")
    return Entropy(nats, confidence)
