"""A text that can be asked: where did these last tokens stand, and what came next?

All places of the text are sorted by the tokens in front of them, read backwards. So the places behind one
token lie side by side, among them those behind two given tokens, and so on: each further token narrows the
range by a binary search, and what is found shortest and longest comes from one descent.

Source: He et al., "REST: Retrieval-Based Speculative Decoding", 2023 (arXiv 2311.08252) for drafting from a
suffix array; sorting by what comes before, so that shorter matches need no new search, is our own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline.core import TargetInfo
from paceline.errors import TokenFileError
from paceline.stores.token_file import TokenFile

KIND = "datastore"
BOUNDARY = -1  # stands between two texts
LONGEST = 16  # tokens in front of a place that count in the order, a power of 2
ROUNDS = LONGEST.bit_length() - 1
LARGEST = (1 << 31) - 1


class Datastore:
    """Texts, one behind the other, and the order of their places.

    tokens  int32 [n]: the texts' tokens with BOUNDARY between
    order   int32 [m]: all places that hold a token and stand behind one, by the tokens in front of them
    starts  int32 [V + 1]: the places behind token t are order[starts[t] : starts[t + 1]]
    """

    def __init__(
        self, tokens: NDArray[np.int32], order: NDArray[np.int32], starts: NDArray[np.int32]
    ) -> None:
        self.arrays = {"tokens": tokens, "order": order, "starts": starts}
        # A memoryview yields Python's own integers, several times as fast as an array does.
        self.tokens: Sequence[int] = tokens.data
        self._order = order.data
        self._starts = starts.data

    @staticmethod
    def index(
        tokens: NDArray[np.int32], vocab_size: int, advance: Callable[[], object] = lambda: None
    ) -> Datastore:
        """Sort the places of a text. advance: called ROUNDS times, after each round of sorting.

        Takes about 40 bytes per token while it works. Raises TokenFileError for a text of fewer than two
        tokens in a row, or of 2^31 tokens.
        """
        if len(tokens) > LARGEST:
            raise TokenFileError(f"a datastore holds at most {LARGEST} tokens, got {len(tokens)}")
        order = _sorted_by_context(tokens, advance) + 1
        order = order[order < len(tokens)]
        order = order[(tokens[order] >= 0) & (tokens[order - 1] >= 0)]
        if not len(order):
            raise TokenFileError("a datastore needs a text of at least two tokens")
        starts = np.searchsorted(tokens[order - 1], np.arange(vocab_size + 1))
        return Datastore(tokens, order.astype(np.int32), starts.astype(np.int32))

    @staticmethod
    def load(path: Path, info: TargetInfo) -> Datastore:
        """The datastore in a file. Raises TokenFileError."""
        file = TokenFile.read(path, KIND)
        file.check(path, info)
        return Datastore(**file.arrays)

    def matches(self, ending: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
        """(matching tokens, place) of at most `count` places behind the last tokens of `ending`, the longest
        matches first; of more places that match alike, evenly spread ones.

        ending: the last tokens of the text to continue, newest first; no match is longer than LONGEST.
        """
        tokens, order = self.tokens, self._order
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
        inner = (0, 0)
        for length in range(len(ranges), 0, -1):
            low, high = ranges[length - 1]
            # Those of the narrower range have been given out.
            gaps = ((low, inner[0]), (inner[1], high)) if inner[1] else ((low, high),)
            for first, last in gaps:
                step = max(1, -(-(last - first) // max(1, count)))
                for at in range(first, last, step):
                    if not count:
                        return
                    yield length, order[at]
                    count -= 1
            inner = low, high


def _sorted_by_context(tokens: NDArray[np.int32], advance: Callable[[], object]) -> NDArray[np.int64]:
    """All indices by the token there, then the one before it, and so on for LONGEST tokens: int64 [n].

    By doubling: what is sorted by k tokens is sorted by 2k once the ranks k places before are compared too.
    """
    ranks = tokens.astype(np.int64) - BOUNDARY
    order = np.empty(0, np.int64)
    for round in range(ROUNDS):
        length = 1 << round
        keys = (ranks + 1) * (int(ranks.max(initial=0)) + 2)
        keys[length:] += ranks[:-length] + 1
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        ranks[order] = np.cumsum(np.concatenate(([0], keys[1:] != keys[:-1]))) if len(keys) else keys
        advance()
    return order
