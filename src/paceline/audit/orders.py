"""The orders in which the sequential test puts the tokens: what kind of bias each one shows.

Any order will do that was fixed before the token was drawn; a bias shows best where the tokens that it
favours stand together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=Hashable)

NAMES = ("likely", "repeated", "copied", "shuffled")
"""likely: from the likeliest token down, for laws sharpened or flattened; repeated: by how often a token
followed the last ones in this text, for favoured guesses that copy the text; copied: by how much more often
than its probability says, for favoured draws from what the text suggests; shuffled: without meaning."""

PAIR_WEIGHT = 4.0
ORDER_SEED = 20220


class Followers(Generic[T]):
    """What followed what so far in one text, of token ids or of anything hashable."""

    def __init__(self) -> None:
        self._counts: dict[tuple[T, ...], dict[T, float]] = {}
        self._last: tuple[T, ...] = ()

    def read(self, tokens: Sequence[T]) -> None:
        """Take in the next tokens of the text."""
        for token in tokens:
            for length in (1, 2):
                if len(self._last) >= length:
                    counts = self._counts.setdefault(self._last[-length:], {})
                    counts[token] = counts.get(token, 0.0) + 1.0
            self._last = (*self._last, token)[-2:]

    def expected(self) -> dict[T, float]:
        """How often each token followed the last token, and the last two: those count more."""
        weights: dict[T, float] = {}
        for length, weight in ((1, 1.0), (2, PAIR_WEIGHT)):
            for token, count in self._counts.get(self._last[-length:], {}).items():
                weights[token] = weights.get(token, 0.0) + weight * count
        return weights


def below(law: NDArray[np.float64], place: int, weights: dict[int, float]) -> NDArray[np.float64]:
    """The mass of the tokens before the one at `place`, under each order of NAMES: float64 [4].

    law: probabilities [n]; weights: {place: how often the text lets one expect it}. Of tokens that an order
    does not tell apart the lower place comes first.
    """
    repeated = np.zeros(len(law))
    copied = repeated
    if weights:
        places = np.fromiter(weights, np.int64, len(weights))
        repeated[places] = np.fromiter(weights.values(), np.float64, len(weights))
        with np.errstate(divide="ignore", invalid="ignore"):
            copied = np.where(law > 0, repeated / law, 0.0)  # where an impossible token stands is all one
    scores = law, repeated, copied, _shuffled(len(law))
    return np.array([law[x > x[place]].sum() + law[:place][x[:place] == x[place]].sum() for x in scores])


@lru_cache(maxsize=8)
def _shuffled(size: int) -> NDArray[np.int64]:
    return np.random.default_rng(ORDER_SEED).permutation(size)
