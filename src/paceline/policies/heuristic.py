"""Two tokens more after a draft that was accepted whole, one less after any other, per request.

The schedule of assisted generation in Hugging Face transformers: it knows neither what a pass costs nor how
likely a token is.
Source: the parameter `num_assistant_tokens_schedule="heuristic"` of transformers' generation; J. Gante,
"Assisted generation", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core import Budget, Step, Tree, View
from paceline.errors import ConfigError
from paceline.policies._cost import PassCost
from paceline.policies.fixed import ALL, even


class Heuristic:
    """Keeps a draft length for each request."""

    def __init__(self, first: int, more: int, less: int) -> None:
        self.nodes = ALL
        self._first = first
        self._more = more
        self._less = less
        self._lengths: dict[int, int] = {}
        self._heights: list[int] = []

    def allot(self, view: View, limits: Sequence[Budget], nodes: int) -> Sequence[Budget]:
        """An even share, and of it no more than the request's length, in nodes and in depth."""
        budgets = []
        for slot, budget in zip(view.slots, even(limits, nodes), strict=True):
            length = self._lengths.setdefault(slot, self._first)
            budgets.append(Budget(min(budget.nodes, length), min(budget.depth, length)))
        return budgets

    def choose(self, view: View, trees: Sequence[Tree]) -> Sequence[Tree]:
        """All of it."""
        self._heights = [_height(tree) for tree in trees]
        return trees

    def observe(self, step: Step) -> None:
        """Longer if the deepest path was accepted whole, shorter if not; as it is if nothing was drafted."""
        for slot, path, height in zip(step.view.slots, step.verdict.paths, self._heights, strict=True):
            if height:
                change = self._more if len(path) == height else -self._less
                self._lengths[slot] = max(1, self._lengths[slot] + change)

    def release(self, slots: Sequence[int]) -> None:
        """Forget the lengths of these sequences."""
        for slot in slots:
            self._lengths.pop(slot, None)


def _height(tree: Tree) -> int:
    depths: list[int] = []
    for parent in tree.parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 1)
    return max(depths, default=0)


def build(cost: PassCost, *, first: int = 5, more: int = 2, less: int = 1) -> Heuristic:
    """The draft length goes up and down with success.

    first  drafted tokens of a request's first draft
    more   tokens more after a draft that was accepted whole
    less   tokens less after one that was not; never less than one token is drafted

    Raises ConfigError for a value out of range.
    """
    for name, value, least in (("first", first, 1), ("more", more, 0), ("less", less, 0)):
        if value < least:
            raise ConfigError(f"heuristic:{name} must be at least {least}, got {value}")
    return Heuristic(first, more, less)
