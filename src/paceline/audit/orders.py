"""The orders in which the sequential test puts the tokens: what kind of bias each one shows.

Any order will do that was fixed before the token was drawn; a bias shows best where the tokens that it
favours stand together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=Hashable)

NAMES = ("likely", "copied", "shuffled")
"""likely: from the likeliest token down, for laws sharpened or flattened; copied: by how much more often a
token followed the last ones in this text than its probability says, for favoured drafts, which repeat the
text; shuffled: a fixed order without meaning."""

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
    """The mass of the tokens before the one at `place`, under each order of NAMES: float64 [3].

    law: probabilities [n]; weights: {place: how often the text lets one expect it}.
    """
    likely = law > law[place]
    copied = np.zeros(len(law))
    if weights:
        places = np.fromiter(weights, np.int64, len(weights))
        with np.errstate(divide="ignore"):  # impossible tokens come first, and weigh nothing
            copied[places] = np.fromiter(weights.values(), float, len(weights)) / law[places]
    rank = _shuffled(len(law))
    return np.array(
        [
            law[likely].sum() + law[:place][law[:place] == law[place]].sum(),
            law[copied > copied[place]].sum() + law[:place][copied[:place] == copied[place]].sum(),
            law[rank < rank[place]].sum(),
        ]
    )


_ranks: dict[int, NDArray[np.int64]] = {}


def _shuffled(size: int) -> NDArray[np.int64]:
    if size not in _ranks:
        _ranks[size] = np.random.default_rng(ORDER_SEED).permutation(size)
    return _ranks[size]
