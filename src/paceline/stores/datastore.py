"""Texts to draft from, in a file: their tokens, and the order that finds a place in them (`lookups.Index`).

Source: He et al., "REST: Retrieval-Based Speculative Decoding", 2023 (arXiv 2311.08252) for drafting from a
suffix array; sorting by what comes before, so that shorter matches need no new search, is our own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline.core import TargetInfo
from paceline.errors import TokenFileError
from paceline.lookups import Index
from paceline.lookups.reference import BOUNDARY, LONGEST
from paceline.stores.token_file import TokenFile

KIND = "datastore"
ROUNDS = LONGEST.bit_length() - 1
LARGEST = (1 << 31) - 1


class Datastore:
    """Texts, one behind the other, and the order of their places: tokens, order and starts as `Index` has
    them."""

    def __init__(
        self, tokens: NDArray[np.int32], order: NDArray[np.int32], starts: NDArray[np.int32]
    ) -> None:
        self.arrays = {"tokens": tokens, "order": order, "starts": starts}
        self.places = Index(tokens, order, starts)

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
