"""As many drafted tokens in every step as was said, shared evenly by the requests that decode."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core import Budget, Step, Tree, View
from paceline.errors import ConfigError
from paceline.policies._cost import PassCost

ALL = 0


class Fixed:
    """Scores all that is proposed within an even share."""

    def __init__(self, nodes: int = ALL, depth: int = ALL) -> None:
        self.nodes = nodes
        self._depth = depth

    def allot(self, view: View, limits: Sequence[Budget], nodes: int) -> Sequence[Budget]:
        """An even share for each row that may be drafted for, at least one token."""
        wanted = min(nodes, self.nodes) if self.nodes else nodes
        return even(limits, wanted, self._depth)

    def choose(self, view: View, trees: Sequence[Tree]) -> Sequence[Tree]:
        """All of it."""
        return trees

    def observe(self, step: Step) -> None:
        """There is nothing to learn."""

    def release(self, slots: Sequence[int]) -> None:
        """There is nothing to free."""


def even(limits: Sequence[Budget], nodes: int, depth: int = ALL) -> list[Budget]:
    """The nodes shared evenly, the first rows taking what is left over, within the limits."""
    drafting = sum(limit.nodes > 0 for limit in limits)
    if not drafting:
        return list(limits)
    share, over = divmod(nodes, drafting)
    budgets = []
    for limit in limits:
        if limit.nodes > 0:
            own = share + (over > 0)
            over -= 1
            limit = Budget(min(limit.nodes, own), min(limit.depth, depth) if depth else limit.depth)
        budgets.append(limit)
    return budgets


def build(cost: PassCost, *, nodes: int = ALL, depth: int = ALL) -> Fixed:
    """The same amount of drafting in every step.

    nodes  drafted tokens scored per step; 0 for as many as the engine allows
    depth  drafted tokens along one path; 0 for any number

    Raises ConfigError for a value out of range.
    """
    if nodes < 0:
        raise ConfigError(f"fixed:nodes must be 0 or more, got {nodes}")
    if depth < 0:
        raise ConfigError(f"fixed:depth must be 0 or more, got {depth}")
    return Fixed(nodes, depth)
