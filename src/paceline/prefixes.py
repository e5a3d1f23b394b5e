"""Pages of earlier texts, found again by the tokens in them.

A tree for each salt: below a page stand the pages that followed it somewhere. Pages that no running request
has are given up when room is needed, the least recently used one first.

Source: the radix tree of SGLang, Zheng et al., 2023 (arXiv 2312.07104), here with one page to an edge.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core import PageSharing


class Page:
    """A page of the target's cache and the tokens in it. `users` counts the running requests whose texts go
    through it; whoever uses a page uses those above it, too."""

    __slots__ = ("above", "below", "id", "tokens", "users")

    def __init__(self, id: int, tokens: tuple[int, ...], above: Page | None) -> None:
        self.id = id
        self.tokens = tokens
        self.above = above
        self.below: dict[tuple[int, ...], Page] = {}
        self.users = 0


class PrefixTree:
    """Which texts are in the pages that are kept. It holds them in the target, and drops them there."""

    def __init__(self, store: PageSharing, page_tokens: int) -> None:
        self._store = store
        self._page_tokens = page_tokens
        self._roots: dict[str, Page] = {}  # by salt; a root is no page
        self._idle: dict[Page, None] = {}  # pages without users, the first to go first
        self._pages = 0

    def __len__(self) -> int:
        """Pages in the tree, in use or not."""
        return self._pages

    @property
    def idle(self) -> int:
        """Pages in the tree that nobody uses."""
        return len(self._idle)

    def find(self, salt: str, text: Sequence[int]) -> list[Page]:
        """The longest path of pages that the text begins with."""
        path: list[Page] = []
        page = self._roots.get(salt)
        while page is not None and (page := page.below.get(self._key(text, len(path)))):
            path.append(page)
        return path

    def use(self, path: Sequence[Page]) -> None:
        """A request has these pages from now on."""
        for page in path:
            if not page.users:
                del self._idle[page]
            page.users += 1

    def leave(self, path: Sequence[Page]) -> None:
        """A request has them no longer."""
        # The deepest first, and a page is left whenever one below it is: the first idle page is a leaf.
        for page in reversed(path):
            page.users -= 1
            if not page.users:
                self._idle[page] = None

    def start(self, slot: int, path: Sequence[Page]) -> None:
        """Let a new sequence of the target begin with these pages, which are in use."""
        if path:
            self._store.adopt(slot, [page.id for page in path])

    def extend(self, salt: str, path: list[Page], text: Sequence[int], slot: int) -> None:
        """Go on with a path in use: take the pages of this sequence that are full of the text, and use them.
        Where the tree has a page with the same tokens already, no more are taken."""
        first, last = len(path), len(text) // self._page_tokens
        if first >= last:
            return
        ids = self._store.pages(slot)
        above = path[-1] if path else self._roots.setdefault(salt, Page(-1, (), None))
        for place in range(first, last):
            key = self._key(text, place)
            if key in above.below:
                break
            page = Page(ids[place], key, above)
            page.users = 1
            above.below[key] = page
            path.append(page)
            above = page
        taken = [page.id for page in path[first:]]
        self._store.hold(taken)
        self._pages += len(taken)

    def forget(self, path: Sequence[Page]) -> None:
        """Never find these pages again, nor any that stand below them: something went wrong with one."""
        if path:
            self._detach(path[0])

    def evict(self, count: int) -> None:
        """Give up so many pages that nobody uses."""
        pages = [page for page, _ in zip(self._idle, range(count), strict=False)]
        for page in pages:
            del self._idle[page]
            self._detach(page)
        self._pages -= len(pages)
        self._store.drop([page.id for page in pages])

    def _detach(self, page: Page) -> None:
        above = page.above
        assert above is not None, "a root is no page"
        if above.below.get(page.tokens) is page:
            del above.below[page.tokens]
        if above.above is None and not above.below:
            self._roots = {salt: root for salt, root in self._roots.items() if root is not above}

    def _key(self, text: Sequence[int], place: int) -> tuple[int, ...]:
        first = place * self._page_tokens
        return tuple(text[first : first + self._page_tokens])
