"""Draw from how often tokens followed one another so far, in prompt and answer.

The law after a token is its followers' shares, those seen after the last two tokens counting most. So this
drafter has a law of its own and really draws from it: every rule can be tried with it, on any model, and the
rules that compare laws earn what matching a fixed guess cannot. As a source of speed `suffix` is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paceline.core import Budget, Drawn, Step, TargetInfo, Tree, View
from paceline.drafters._options import parse_drawn, parse_widths
from paceline.drafting import Paths, grow

PAIR_WEIGHT = 4.0  # a follower of the last two tokens counts so many times as much as one of the last
UNSEEN_WEIGHT = 0.05  # shared by all tokens, so that none is impossible


class Followers:
    """How often each token followed each token, and each pair, in one sequence."""

    __slots__ = ("_counts", "_read")

    def __init__(self) -> None:
        self._counts: dict[tuple[int, ...], dict[int, int]] = {}
        self._read = 1

    def read(self, history: Sequence[int]) -> None:
        """Take in the tokens since the last call."""
        for place in range(self._read, len(history)):
            for length in (1, 2):
                if place >= length:
                    counts = self._counts.setdefault(tuple(history[place - length : place]), {})
                    counts[history[place]] = counts.get(history[place], 0) + 1
        self._read = max(self._read, len(history))

    def weights(self, ending: Sequence[int], vocab_size: int) -> NDArray[np.float64]:
        """Weight of every token behind this ending of two tokens, or of one: float64 [V]."""
        weights = np.full(vocab_size, UNSEEN_WEIGHT / vocab_size)
        for length, weight in ((1, 1.0), (2, PAIR_WEIGHT)):
            for token, count in self._counts.get(tuple(ending[-length:]), {}).items():
                weights[token] += weight * count
        return weights


class Markov:
    """Draws a tree for every row from the row's own followers."""

    needs: frozenset[str] = frozenset()
    whole = False

    def __init__(self, vocab_size: int, widths: Sequence[int], drawn: Drawn) -> None:
        self.drawn = frozenset({drawn})
        self.branches = max(widths) > 1
        self._vocab_size = vocab_size
        self._widths = widths
        self._how = drawn
        self._followers: dict[int, Followers] = {}

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A drawn tree for each row that decodes."""
        for slot, history in zip(view.slots, view.histories, strict=True):
            self._followers.setdefault(slot, Followers()).read(history)

        def laws(paths: Paths) -> list[NDArray[np.float64]]:
            return [
                self._followers[view.slots[row]].weights(
                    (*view.histories[row][-2:], *path)[-2:], self._vocab_size
                )
                for row, path in paths
            ]

        return grow(view, budgets, laws, widths=self._widths, drawn=self._how)

    def observe(self, step: Step) -> None:
        """The histories say all there is to know."""

    def release(self, slots: Sequence[int]) -> None:
        """Forget the followers of these sequences."""
        for slot in slots:
            self._followers.pop(slot, None)


def build(info: TargetInfo, *, widths: str = "1x1x1x1", drawn: str = "iid") -> Markov:
    """Drawing from follower counts.

    widths  children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    drawn   how siblings are drawn: "iid" (independently) or "without_replacement"

    Raises ConfigError for a value out of range.
    """
    return Markov(info.vocab_size, parse_widths("markov", widths), parse_drawn("markov", drawn))
