"""A target and a drafter that fail at random."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from paceline.core import NOTHING, Budget, Draft, Scores, Tree, Verdict, View
from paceline.targets.table import TableTarget
from tests.sim.jobs import LONGEST, PAGE
from tests.toys import VOCABULARY, Oracle


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FailingTarget(TableTarget):
    """A table whose passes raise, whose logits are NaN, and whose pages go bad, each time at random.

    hit: slots that something went wrong with since they were looked at last.
    """

    def __init__(self, rng: random.Random, rate: float, cache_tokens: int, seen: Counter[str]) -> None:
        super().__init__(VOCABULARY, cache_tokens=cache_tokens, page_tokens=PAGE, max_positions=LONGEST + 1)
        self.hit: set[int] = set()
        self._rng = rng
        self._rate = rate
        self._seen = seen
        self._bad: set[int] = set()  # pages

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        scores = super().forward(draft, taps)
        slots = draft.slots.tolist()
        if self._rng.random() < self._rate / 4:
            self._seen["a pass raised"] += 1
            self.hit.update(slots)
            raise RuntimeError("the machine is on fire")
        for row, slot in enumerate(slots):
            first, last = draft.offsets[row : row + 2].tolist()
            mine = (draft.scored >= first) & (draft.scored < last)
            if self._bad.intersection(self._books.of(slot)):
                scores.logits[mine] = np.nan
            elif mine.any() and self._rng.random() < self._rate / 4:
                place = self._rng.choice(np.flatnonzero(mine).tolist())
                scores.logits[place, self._rng.randrange(VOCABULARY)] = self._rng.choice((np.nan, np.inf))
                drafted = draft.scored[place] > draft.roots[row] >= 0
                self._seen["drafted logits went bad" if drafted else "logits went bad"] += 1
                self.hit.add(slot)
            elif not mine.any() and self._rng.random() < self._rate:
                self._seen["a page went bad"] += 1
                self._bad.add(self._books.of(slot)[int(draft.starts[row]) // PAGE])
                self.hit.add(slot)
        return scores

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        super().commit(draft, verdict)

    def release(self, slots: Sequence[int]) -> None:
        super().release(slots)
        self._bad = {page for page in self._bad if self._books.uses(page)}


class FailingDrafter(Oracle):
    """Knows the answers, and every now and then does something that no drafter should."""

    def __init__(
        self,
        answers: dict[int, tuple[int, ...]],
        rng: random.Random,
        rate: float,
        clock: Clock,
        seen: Counter[str],
    ) -> None:
        super().__init__(answers)
        self._rng = rng
        self._rate = rate
        self._clock = clock
        self._seen = seen

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        trees = super().propose(view, budgets)
        if self._rng.random() >= self._rate or not any(tree.tokens for tree in trees):
            return trees
        row = self._rng.choice([row for row, tree in enumerate(trees) if tree.tokens])
        tokens, parents = list(trees[row].tokens), list(trees[row].parents)
        wrong = {
            "raises": None,
            "too few trees": NOTHING,
            "is slow": NOTHING,
            "a token too large": Tree([*tokens[:-1], VOCABULARY], parents),
            "a token below 0": Tree([*tokens[:-1], -1], parents),
            "a token that is no number": Tree([*tokens[:-1], float("nan")], parents),  # type: ignore[list-item]
            "its own parent": Tree(tokens, [*parents[:-1], len(parents) - 1]),
            "too few parents": Tree(tokens, parents[:-1]),
            "a confidence that is no number": Tree(tokens, parents, confidences=[float("nan")] * len(tokens)),
            "an infinite confidence": Tree(tokens, parents, confidences=[float("inf")] * len(tokens)),
            "no tree": None,
        }
        fault = self._rng.choice(list(wrong))
        self._seen[f"drafter: {fault}"] += 1
        if fault == "raises":
            raise RuntimeError("lost the thread")
        if fault == "is slow":
            self._clock.now += 5
            return trees
        if fault == "too few trees":
            return trees[:-1]
        trees[row] = wrong[fault]  # type: ignore[call-overload]
        return trees
