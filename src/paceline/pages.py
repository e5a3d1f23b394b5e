"""The books of a paged cache, for targets that are written in Python: which pages are free, and who has the
others. The compiled kernels keep the same ones (kernels/cpp/pages.hpp)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from paceline.errors import CapacityError


class PageBooks:
    """Pages of sequences, named by slot. A page is free once no sequence has it and nobody holds it."""

    def __init__(self, pages: int, page_tokens: int) -> None:
        self._count = pages
        self._page_tokens = page_tokens
        self._next = 0  # pages from here on were never used
        self._returned: list[int] = []
        self._uses: dict[int, int] = {}  # by sequences and holders
        self._held: Counter[int] = Counter()
        self._tables: dict[int, list[int]] = {}

    @property
    def free(self) -> int:
        """Pages that nobody has."""
        return self._count - len(self._uses)

    def of(self, slot: int) -> list[int]:
        """The pages of a sequence, first to last."""
        return self._tables.get(slot, [])

    def uses(self, page: int) -> int:
        """How many sequences and holders have this page."""
        return self._uses.get(page, 0)

    def reserve(self, lengths: Mapping[int, int]) -> None:
        """Give sequences pages for so many tokens each. Raises CapacityError, and then nothing has
        changed, if there are too few."""
        missing = {
            slot: -(-tokens // self._page_tokens) - len(self.of(slot)) for slot, tokens in lengths.items()
        }
        wanted = sum(max(0, count) for count in missing.values())
        if wanted > self.free:
            raise CapacityError(
                f"the cache has {self.free * self._page_tokens} tokens free, this pass needs "
                f"{wanted * self._page_tokens} more"
            )
        for slot, count in missing.items():
            table = self._tables.setdefault(slot, [])
            for _ in range(count):
                if self._returned:
                    page = self._returned.pop()
                else:
                    page, self._next = self._next, self._next + 1
                self._uses[page] = 1
                table.append(page)

    def shrink(self, slot: int, tokens: int) -> None:
        """Give back the pages of a sequence behind those that its first tokens, so many, are in."""
        table = self.of(slot)
        while len(table) > -(-tokens // self._page_tokens):
            self._return(table.pop())

    def release(self, slots: Sequence[int]) -> None:
        """These sequences end. An unknown one is no error."""
        for slot in slots:
            for page in reversed(self._tables.pop(slot, [])):
                self._return(page)

    def adopt(self, slot: int, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        if slot in self._tables:
            raise ValueError(f"slot {slot} is in use and cannot adopt pages")
        self._check_used(pages)
        for page in pages:
            self._uses[page] += 1
        self._tables[slot] = list(pages)

    def hold(self, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self._check_used(pages)
        for page in pages:
            self._uses[page] += 1
            self._held[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        for page in pages:
            if not self._held[page]:
                raise ValueError(f"page {page} is not held")
            self._held[page] -= 1
            self._return(page)

    def _check_used(self, pages: Sequence[int]) -> None:
        for page in pages:
            if page not in self._uses:
                raise ValueError(f"page {page} is free")

    def _return(self, page: int) -> None:
        self._uses[page] -= 1
        if not self._uses[page]:
            del self._uses[page]
            self._returned.append(page)
