"""Looking up where a text may go on: the slow reference of the compiled classes, one for one.

A *place* in a text is where a token stands that may come next: the tokens in front of it are the last ones of
the text that is to go on. The more of them agree, the more a place weighs. What stands at the places are
candidates, each confident by its share of the weight; behind a candidate its own places go on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.lookups.best_first import best_first

BOUNDARY = -1
"""Stands between two texts and follows nothing. Any negative token does that."""
LONGEST = 16
"""Tokens in front of a place that count in an `Index`, a power of 2."""
DECAY = 2.0
"""A place where one more token agrees weighs so many times as much."""
UNSEEN_WEIGHT = 0.1
"""Weight of "none of these places", next to the heaviest, which weighs 1."""

Match = tuple[int, int]
"""Tokens that agree in front of a place, and the place."""


class Text:
    """A growing text, and for each token the places behind its occurrences.

    That is the first level of a suffix tree; deeper ones are read off the text, for the few occurrences that
    are looked at. So a token costs one append, and the tree is never larger than the text.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._followers: dict[int, list[int]] = {}
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """All of them, a copy."""
        return list(self._tokens)

    def at(self, place: int) -> int:
        """The token that stands there, negative behind the end."""
        return self._tokens[place] if place < len(self._tokens) else BOUNDARY

    def extend(self, tokens: Sequence[int]) -> None:
        """The text went on with these."""
        for token in tokens:
            if self._tokens:
                self._followers.setdefault(self._tokens[-1], []).append(len(self._tokens))
            self._tokens.append(token)

    def matches(self, ending: Sequence[int], most: int) -> list[Match]:
        """The latest places behind the first token of `ending`, at most so many, latest first.

        ending: the last tokens of a text, newest first; no more than these can agree.
        """
        tokens = self._tokens
        found = []
        for place in self._followers.get(ending[0], ())[: -most - 1 : -1]:
            agreed, before = 1, place - 2
            while agreed < len(ending) and before >= 0 and tokens[before] == ending[agreed]:
                agreed += 1
                before -= 1
            found.append((agreed, place))
        return found


class Index:
    """Texts that do not grow, and the order of their places.

    All places are sorted by the tokens in front of them, read backwards: those behind one token lie side by
    side, among them those behind two given tokens, and so on. Each further token narrows the range by a
    binary search, and what agrees shortest and longest comes from one descent.

    tokens  int32 [n]: the texts' tokens with BOUNDARY between
    order   int32 [m]: all places that hold a token and stand behind one, by LONGEST tokens in front of them
    starts  int32 [V + 1]: the places behind token t are order[starts[t] : starts[t + 1]]
    """

    def __init__(
        self, tokens: NDArray[np.int32], order: NDArray[np.int32], starts: NDArray[np.int32]
    ) -> None:
        # A memoryview yields Python's own integers, several times as fast as an array does.
        self._tokens: Sequence[int] = tokens.data
        self._order: Sequence[int] = order.data
        self._starts: Sequence[int] = starts.data

    def at(self, place: int) -> int:
        """The token that stands there, negative behind the end."""
        return self._tokens[place] if place < len(self._tokens) else BOUNDARY

    def matches(self, ending: Sequence[int], most: int) -> list[Match]:
        """At most so many places behind the first token of `ending`, those where most tokens agree first; of
        more places with as many, evenly spread ones.

        ending: the last tokens of a text, newest first; no more than these and LONGEST can agree.
        """
        found: list[Match] = []
        ranges = self._ranges(ending)
        inner = (0, 0)
        for agreed in range(len(ranges), 0, -1):
            low, high = ranges[agreed - 1]
            # Those of the narrower range have been taken.
            gaps = ((low, inner[0]), (inner[1], high)) if inner[1] else ((low, high),)
            for first, last in gaps:
                left = most - len(found)
                step = max(1, -(-(last - first) // max(1, left)))
                found += [(agreed, self._order[at]) for at in range(first, last, step)[:left]]
            inner = low, high
        return found

    def _ranges(self, ending: Sequence[int]) -> list[tuple[int, int]]:
        """Where in the order the places lie behind 1, 2, ... tokens of `ending`, as far as there are any."""
        tokens, order = self._tokens, self._order
        if not 0 <= ending[0] < len(self._starts) - 1:
            return []
        low, high = self._starts[ending[0]], self._starts[ending[0] + 1]
        ranges = []
        while low < high:
            ranges.append((low, high))
            length = len(ranges)
            if length == min(len(ending), LONGEST):
                break

            def before(place: int, length: int = length) -> int:
                return tokens[place - 1 - length] if place > length else BOUNDARY

            low = bisect_left(order, ending[length], low, high, key=before)
            high = bisect_right(order, ending[length], low, high, key=before)
        return ranges


class Place(NamedTuple):
    """One place where the text may go on, and what it weighs next to the heaviest."""

    weight: float
    source: Text | Index
    place: int


class Continuations:
    """Where a text may go on.

    ending: its last tokens, newest first; ValueError if there is none.
    longest: tokens that agree at the best place; 0 where there is none.
    """

    def __init__(self, ending: Sequence[int]) -> None:
        if not ending:
            raise ValueError("a text that goes on has a last token")
        self._ending = ending
        self._places: list[Place] = []
        self.longest = 0

    def look_in(self, source: Text | Index, most: int, weight: float) -> None:
        """Take at most so many places of a text. weight: of a place where nothing agrees, next to that of
        other texts; DECAY times as much for each token."""
        for agreed, place in source.matches(self._ending, most):
            self.add(source, place, agreed, weight * DECAY**agreed)

    def add(self, source: Text | Index, place: int, agreed: int, weight: float) -> None:
        """Take one place."""
        self.longest = max(self.longest, agreed)
        self._places.append(Place(weight, source, place))

    def first(self) -> dict[int, float]:
        """What may come next, each token with its confidence."""
        return {token: confidence for token, confidence, _ in following(self.longest, self._relative())}

    def tree(
        self, nodes: int, depth: int, min_probability: float, scales: Sequence[float] = ()
    ) -> tuple[list[int], list[int], list[float]]:
        """Tokens, parents and confidences of the tree that grows best first (`best_first`).

        scales: factors of the confidence by tokens that agree, the last one for all longer matches; none: 1.
        """

        def followers(state: tuple[int, list[Place]]) -> Iterator[tuple[int, float, tuple[int, list[Place]]]]:
            agreed, places = state
            scale = scales[min(agreed, len(scales) - 1)] if scales else 1.0
            for token, confidence, below in following(agreed, places):
                yield token, scale * confidence, (agreed + 1, below)

        grown = best_first((self.longest, self._relative()), followers, nodes, depth, min_probability)
        return list(grown.tokens), list(grown.parents), list(grown.confidences)

    def _relative(self) -> list[Place]:
        heaviest = max((place.weight for place in self._places), default=1.0)
        return [place._replace(weight=place.weight / heaviest) for place in self._places]


def certainty(agreed: int) -> float:
    """How often a text goes on as it did at an earlier place where so many last tokens stood.

    Measured on greedy answers of a small model: half of all matches of one token go on alike, three in
    four of four tokens, nine in ten of thirteen.
    """
    return 1 - 1.5 / (agreed + 2)


def following(agreed: int, places: Sequence[Place]) -> Iterator[tuple[int, float, list[Place]]]:
    """The tokens at these places, each with its confidence, its share of the weight times the certainty of a
    match of that length, and the places behind it."""
    behind: dict[int, list[Place]] = {}
    weights: dict[int, float] = {}
    total = UNSEEN_WEIGHT
    for weight, source, place in places:
        token = source.at(place)
        if token >= 0:
            total += weight
            weights[token] = weights.get(token, 0.0) + weight
            behind.setdefault(token, []).append(Place(weight, source, place + 1))
    share = certainty(agreed) / total
    for token, weight in weights.items():
        yield token, share * weight, behind[token]
