"""Keys and values of all sequences, in pages, layer by layer, on the model's device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.pages import PageBooks

PAGE_TOKENS = 16
GROWTH = 1.5
"""A layer that has too few entries gets so many times as many as it needs."""


class Pool:
    """Entries for so many tokens. A layer's are two tensors [entries, heads, width], made when they are first
    written and made larger as more pages come into use.

    A sequence has `length` committed entries, in the order of their positions; behind them lie those of the
    last pass. `places` says which entries of the pool they are.
    """

    def __init__(self, tokens: int) -> None:
        self.books = PageBooks(tokens // PAGE_TOKENS, PAGE_TOKENS)
        self._most = tokens
        self._used = 0  # entries of all pages up to the last that was ever in use
        self._lengths: dict[int, int] = {}
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def length(self, slot: int) -> int:
        """Committed entries of a sequence; 0 of one that is not here."""
        return self._lengths.get(slot, 0)

    def reserve(self, lengths: Mapping[int, int]) -> None:
        """Give sequences room for so many entries. Raises CapacityError, and then nothing has changed."""
        self.books.reserve(lengths)
        for slot in lengths:
            self._lengths.setdefault(slot, 0)
            self._used = max(self._used, *((page + 1) * PAGE_TOKENS for page in self.books.of(slot)))

    def places(self, slot: int, end: int) -> NDArray[np.int64]:
        """Where the first `end` entries of a sequence are, int64 [end]."""
        pages = np.array(self.books.of(slot)[: -(-end // PAGE_TOKENS)], np.int64)
        return (pages[:, None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)).ravel()[:end]

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values [heads, n, width] at these places, int64 [n]; all of the layer's."""
        held = self._layers.get(layer)
        if held is None or len(held[0]) < self._used:
            entries = min(int(self._used * GROWTH), self._most)
            grown = tuple(new.new_empty(entries, new.shape[0], new.shape[2]) for new in (keys, values))
            for room, old in zip(grown, held or (), strict=False):
                room[: len(old)] = old
            held = self._layers[layer] = (grown[0], grown[1])
        for store, new in zip(held, (keys, values), strict=True):
            store[places] = new.transpose(0, 1)
        return held

    def keep(self, kept: Iterable[tuple[int, int, Sequence[int]]]) -> None:
        """Commit entries of the last pass: (slot, how many known ones, then those of a path), each counted
        from the first that is not committed."""
        sources: list[int] = []
        goals: list[int] = []
        for slot, known, path in kept:
            start = self._lengths[slot]
            end = self._lengths[slot] = start + known + len(path)
            if list(path) == list(range(known, known + len(path))):
                continue  # they are where they belong
            places = self.places(slot, start + max(path) + 1)
            sources += places[[start + node for node in path]].tolist()
            goals += places[start + known : end].tolist()
        if goals:
            for layer in self._layers.values():
                for store in layer:
                    store[goals] = store[sources]

    def read(self, slot: int, layer: int) -> tuple[Tensor, Tensor]:
        """The committed keys and values of a layer, [heads, length, width] each. For tests."""
        places = torch.from_numpy(self.places(slot, self._lengths[slot]))
        keys, values = self._layers[layer]
        return keys[places].transpose(0, 1), values[places].transpose(0, 1)

    def pages(self, slot: int) -> list[int]:
        """See `paceline.core.PageSharing`."""
        return self.books.of(slot)[: self.length(slot) // PAGE_TOKENS]

    def adopt(self, slot: int, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self.books.adopt(slot, pages)
        self._lengths[slot] = len(pages) * PAGE_TOKENS

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences. An unknown one is no error."""
        self.books.release(slots)
        for slot in slots:
            self._lengths.pop(slot, None)
