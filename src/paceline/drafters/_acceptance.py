"""How often drafted tokens come true, learned by their rank among the candidates and by their probability."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise

from paceline.core import Step

SHARES = 8  # a candidate's share of the probability is kept in so many classes
PRIOR_WEIGHT = 4.0  # what the first guess of an acceptance counts for, in observations
REMEMBERED = 2000  # observations of a class; then both counts are halved, so that it follows the text

Successors = tuple[tuple[int, int], ...]
"""(token, class of its share or probability), likeliest first."""

TRUST = 0.6
"""First guess: a token is accepted as often as its share says, less what the context changes."""
GUESSES = [TRUST * (share + 0.5) / SHARES for share in range(SHARES)]


class Acceptance:
    """How often a successor of this rank and class of share was the next token."""

    def __init__(self, ranks: int, guesses: Sequence[float] = GUESSES) -> None:
        """guesses: the first guess of each class."""
        self.estimates = [[*guesses] for _ in range(ranks)]
        self._hits = [[PRIOR_WEIGHT * guess for guess in guesses] for _ in range(ranks)]
        self._trials = [[PRIOR_WEIGHT] * len(guesses) for _ in range(ranks)]

    def learn(self, successors: Successors, token: int) -> None:
        """Note which of the successors kept for a token was the next one."""
        for rank, (successor, share) in enumerate(successors):
            hits, trials = self._hits[rank], self._trials[rank]
            hits[share] += successor == token
            trials[share] += 1
            self.estimates[rank][share] = hits[share] / trials[share]
            if trials[share] > REMEMBERED:
                hits[share] /= 2
                trials[share] /= 2


EDGES = (*(2.0**-power for power in range(7, 3, -1)), *(eighth / 8 for eighth in range(1, 8)))
"""Between the classes of probabilities whose acceptance is learned: narrow where they are small, for of many
unlikely tokens the less unlikely ones must be told apart."""
PROBABLE = [TRUST * (low + high) / 2 for low, high in pairwise((0.0, *EDGES, 1.0))]
"""First guesses for these classes."""


class Siblings:
    """How often the tokens that were drafted behind one path came true, learned for each level by their rank
    and the probability that a model gave them; at temperature 0 apart from others, for what is likely of a
    draw says little of what is likely where nothing is drawn.

    widths: tokens of each level.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._acceptance = {
            greedy: [Acceptance(width, PROBABLE) for width in widths] for greedy in (False, True)
        }
        self._proposed: dict[int, dict[Hashable, Successors]] = {}
        """{slot: {place: what may follow it}}"""

    def add(self, slot: int, place: Hashable, drawn: Sequence[tuple[int, float]]) -> Successors:
        """Note (token, probability), the first by rank first, that may follow a place of the tree."""
        found = tuple((token, bisect(EDGES, probability)) for token, probability in drawn)
        self._proposed.setdefault(slot, {})[place] = found
        return found

    def estimates(self, greedy: bool, depth: int) -> Sequence[Sequence[float]]:
        """By rank and class: how likely such a token is right."""
        return self._acceptance[greedy][depth].estimates

    def learn(self, step: Step, place_of: Callable[[int, tuple[int, ...]], Hashable]) -> None:
        """Take in which came true. place_of: from a row and a path to its place."""
        for row, slot in enumerate(step.view.slots):
            proposed = self._proposed.pop(slot, {})
            acceptance = self._acceptance[step.view.controls[row].params.temperature == 0]
            emitted = tuple(step.emitted(row)) if proposed else ()
            for depth, token in enumerate(emitted):
                found = proposed.get(place_of(row, emitted[:depth]), ())
                if found:
                    acceptance[depth].learn(found, token)
                if all(token != candidate for candidate, _ in found):
                    break

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        for slot in slots:
            self._proposed.pop(slot, None)
