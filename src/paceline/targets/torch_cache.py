"""Keys and values of all sequences, in pages, layer by layer, on the model's device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.pages import PageBooks

PAGE_TOKENS = 16
EMPTY = 0
"""The entry that stands for those that are not there: zeros."""
WASTE = 1
"""The entry where rows that only fill up a pass are kept: never read."""
OWN = 2
"""So many entries are no page's."""
GROWTH = 1.5
"""A layer that has too few entries gets so many times as many as it needs."""


class Pool:
    """Entries for so many tokens. A layer's are two tensors [entries, heads, width], made when they are first
    written and made larger as more pages come into use.

    A sequence has `length` committed entries, in the order of their positions; behind them lie those of the
    last pass. `places` says which entries of the pool they are. `moves` counts how often layers were made
    larger, which leaves no tensor where it was.
    """

    def __init__(self, tokens: int) -> None:
        self.books = PageBooks(tokens // PAGE_TOKENS, PAGE_TOKENS)
        self.moves = 0
        self._most = OWN + tokens
        self._used = OWN  # entries of all pages up to the last that was ever in use
        self._room = OWN  # entries of each layer
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
            self._used = max(self._used, *(OWN + (page + 1) * PAGE_TOKENS for page in self.books.of(slot)))
        if self._used > self._room:
            self._room = min(int(self._used * GROWTH), self._most)
            self.moves += 1
            for layer, (keys, values) in self._layers.items():
                self._layers[layer] = (self._grown(keys), self._grown(values))

    def _grown(self, store: Tensor) -> Tensor:
        room = store.new_empty(self._room, *store.shape[1:])
        room[: len(store)] = store
        return room

    def places(self, slot: int, end: int) -> NDArray[np.int64]:
        """Where the first `end` entries of a sequence are, int64 [end]."""
        pages = np.array(self.books.of(slot)[: -(-end // PAGE_TOKENS)], np.int64)
        return (OWN + pages[:, None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)).ravel()[:end]

    def write(
        self, layer: int, places: Tensor | slice, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put keys and values [heads, n, width] at these places, int64 [n]; all of the layer's."""
        held = self._layers.get(layer)
        if held is None:
            first, second = (
                self._grown(new.new_zeros(OWN, new.shape[0], new.shape[2])) for new in (keys, values)
            )
            held = self._layers[layer] = (first, second)
        held[0][places] = keys.transpose(0, 1)
        held[1][places] = values.transpose(0, 1)
        return held

    def keep(self, kept: Iterable[tuple[int, int, Sequence[int]]]) -> None:
        """Commit entries of the last pass: (slot, how many known ones, then those of a path), each counted
        from the first that is not committed. Pages behind them are free again."""
        sources: list[int] = []
        goals: list[int] = []
        for slot, known, path in kept:
            start = self._lengths[slot]
            end = self._lengths[slot] = start + known + len(path)
            if list(path) != list(range(known, known + len(path))):  # else they are where they belong
                places = self.places(slot, start + max(path) + 1)
                sources += places[[start + node for node in path]].tolist()
                goals += places[start + known : end].tolist()
            self.books.shrink(slot, end)
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
