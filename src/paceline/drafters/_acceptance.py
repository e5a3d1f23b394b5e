"""How often drafted tokens come true, learned by their rank among the candidates and by their probability."""

from __future__ import annotations

from collections.abc import Sequence

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
