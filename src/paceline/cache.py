"""Who may use how much of the target's cache.

A request claims pages before it fills them, so that a pass that was planned always has room. The target
knows what is in the pages; what is counted here is held to the target's own books by tests/sim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.core import PageSharing, TargetInfo
from paceline.prefixes import Page, PrefixTree


@dataclass(slots=True)
class Seat:
    """What one running request has of the cache.

    slot     its sequence
    salt     pages are shared among requests with the same one; None: it shares nothing
    claimed  pages that it fills, or may fill
    path     those of them that are in the tree of prefixes: the first ones
    begun    whether its sequence is there
    """

    slot: int
    salt: str | None
    claimed: int
    path: list[Page]
    begun: bool = False


class Cache:
    """The pages of the target's cache. store: for a target whose sequences share pages."""

    def __init__(self, info: TargetInfo, store: PageSharing | None) -> None:
        self.lookup_tokens = self.hit_tokens = 0
        self._page_tokens = info.page_tokens
        self._total = info.cache_tokens // info.page_tokens
        self._private = 0  # claimed by requests and not in the tree
        self._tree = None if store is None else PrefixTree(store, info.page_tokens)

    @property
    def tokens(self) -> int:
        """Tokens that it holds, in whole pages."""
        return self._total * self._page_tokens

    @property
    def used_tokens(self) -> int:
        """Tokens of the pages that running requests have claimed; pages that several share count once."""
        shared = 0 if self._tree is None else len(self._tree) - self._tree.idle
        return (self._private + shared) * self._page_tokens

    def admit(self, slot: int, salt: str | None, text: Sequence[int], tokens: int) -> Seat | None:
        """A seat with room for so many tokens, or None if there is none. text: what to look for at once."""
        seat = Seat(slot, salt, 0, [])
        self.look(seat, text)
        if not self.grow(seat, tokens):
            self.leave(seat)
            return None
        return seat

    def known(self, salt: str | None, text: Sequence[int]) -> int:
        """How many of the text's tokens need not be read. The last one always is: its logits are wanted."""
        return len(self._path(salt, text)) * self._page_tokens

    def look(self, seat: Seat, text: Sequence[int]) -> None:
        """Let pages that hold the beginning of the text take the place of pages of its own. Not for a
        sequence that has begun, or found some already."""
        seat.path = self._path(seat.salt, text)
        self._private -= len(seat.path)
        if self._tree is not None:
            self._tree.use(seat.path)

    def begin(self, seat: Seat, looked_for: int) -> int:
        """Let the sequence begin with what was found; how many tokens that is, of so many looked for."""
        seat.begun = True
        found = len(seat.path) * self._page_tokens
        if self._tree is not None and seat.salt is not None:
            self._tree.start(seat.slot, seat.path)
            self.lookup_tokens += looked_for
            self.hit_tokens += found
        return found

    def _path(self, salt: str | None, text: Sequence[int]) -> list[Page]:
        return [] if self._tree is None or salt is None else self._tree.find(salt, text[:-1])

    def grow(self, seat: Seat, tokens: int) -> bool:
        """Claim pages until the sequence may have so many tokens; whether there was room. If there was not,
        nothing is claimed."""
        missing = self._pages(tokens) - seat.claimed
        if missing > 0 and missing > self._room():
            return False
        self._claim(seat, missing)
        return True

    def stretch(self, seat: Seat, tokens: int) -> int:
        """Claim pages for so many tokens as far as there is room; the tokens that the sequence may have."""
        missing = self._pages(tokens) - seat.claimed
        if missing > 0:
            self._claim(seat, min(missing, self._room()))
        return seat.claimed * self._page_tokens

    def publish(self, seat: Seat, text: Sequence[int]) -> None:
        """Let later requests find the full pages of this text, which its sequence holds."""
        if self._tree is not None and seat.salt is not None:
            before = len(seat.path)
            self._tree.extend(seat.salt, seat.path, text, seat.slot)
            self._private -= len(seat.path) - before

    def leave(self, seat: Seat, *, failed: bool = False) -> None:
        """The request runs no longer. failed: its pages shall not be found again."""
        self._private -= seat.claimed - len(seat.path)
        if self._tree is not None:
            if failed:
                self._tree.forget(seat.path)
            self._tree.leave(seat.path)

    def _free(self) -> int:
        return self._total - self._private - (0 if self._tree is None else len(self._tree))

    def _room(self) -> int:
        """Pages that are free, or kept for nobody in particular."""
        return self._free() + (0 if self._tree is None else self._tree.idle)

    def _claim(self, seat: Seat, count: int) -> None:
        if count <= 0:
            return
        if self._tree is not None and (evicted := count - self._free()) > 0:
            self._tree.evict(evicted)
        seat.claimed += count
        self._private += count

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._page_tokens)
