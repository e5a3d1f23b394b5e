"""How many levels of drawn tokens pay, decided before anything is drawn."""

from __future__ import annotations

from paceline.core import Budget, Tree
from paceline.policies._cost import PassCost

HOPE = 0.7
"""A level's rate of acceptance before any was seen."""
PRIOR = 4.0
MEMORY = 100.0
DEEPEST = 32
FIRST_PAUSE, LONGEST_PAUSE = 8, 256
"""Steps without a draft after which one level is tried again, where none pays."""


class Levels:
    """One drafter's drawn trees: tokens per level, and how often a level was accepted after the one above."""

    def __init__(self) -> None:
        self._rates = [HOPE] * DEEPEST
        self._weights = [PRIOR] * DEEPEST
        self._widths = [1.0] * DEEPEST
        self._skipped = 0
        self._pause = FIRST_PAUSE

    def best(self, rows: int, known: int, budget: Budget, cost: PassCost) -> int:
        """The depth that brings most tokens per second if `rows` rows draft so deep; now and then 1 where
        that would be 0, or a drafter that got better would never be seen to.

        known: tokens in the pass without drafts.
        """
        best, most = 0, rows / cost.relative(known)
        reached, tokens, nodes = 1.0, 1.0, 0.0
        for depth in range(min(budget.depth, budget.nodes, DEEPEST)):
            reached *= self._rates[depth]
            tokens += reached
            nodes += self._widths[depth]
            if nodes > budget.nodes:
                break
            rate = rows * tokens / cost.relative(known + round(rows * nodes))
            if rate > most:
                best, most = depth + 1, rate
        if best:
            self._skipped, self._pause = 0, FIRST_PAUSE
            return best
        self._skipped += 1
        if self._skipped > self._pause:
            self._skipped, self._pause = 0, min(2 * self._pause, LONGEST_PAUSE)
            return 1
        return 0

    def learn(self, tree: Tree, accepted: int) -> None:
        """A tree was scored and its path was accepted so deep."""
        depths: list[int] = []
        for parent in tree.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        for depth in range(min(accepted + 1, max(depths) + 1, DEEPEST)):
            weight = self._weights[depth] = min(self._weights[depth] + 1, MEMORY)
            self._rates[depth] += ((depth < accepted) - self._rates[depth]) / weight
            self._widths[depth] += (depths.count(depth) - self._widths[depth]) / weight
