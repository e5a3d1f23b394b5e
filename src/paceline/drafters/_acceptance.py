"""How often drafted tokens come true, learned by their rank among the candidates and by their probability."""

from __future__ import annotations

SHARES = 8  # a candidate's probability, or share of it, is kept in so many classes
PRIOR_WEIGHT = 4.0  # what the first guess of an acceptance counts for, in observations
REMEMBERED = 2000  # observations of a class; then both counts are halved, so that it follows the text

Successors = tuple[tuple[int, int], ...]
"""(token, class of its share), likeliest first."""


class Acceptance:
    """How often a successor of this rank and class of share was the next token."""

    def __init__(self, ranks: int) -> None:
        # First guess: as often as its share says, less what the context changes.
        self.estimates = [[0.6 * (share + 0.5) / SHARES for share in range(SHARES)] for _ in range(ranks)]
        self._hits = [[PRIOR_WEIGHT * guess for guess in row] for row in self.estimates]
        self._trials = [[PRIOR_WEIGHT] * SHARES for _ in range(ranks)]

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
