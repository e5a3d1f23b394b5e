"""A tiny exact model for proofs: the next token's logits are looked up by the last two tokens.

All is float64 and known, so that laws can be checked against the table itself. It keeps its own cache,
checks every promise that the engine makes about it, and fails loudly where one is broken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.core import Draft, Scores, TargetInfo, Verdict
from paceline.pages import PageBooks


class TableTarget:
    """logits = table[token before, token], float64 [V, V, V]; before the first token stands token 0.

    spread is the standard deviation of the logits: larger means more certain laws. Its one tap, "last",
    is the logits of every node, scored or not.
    """

    def __init__(
        self,
        vocab_size: int = 12,
        *,
        seed: int = 0,
        spread: float = 1.5,
        max_positions: int = 512,
        cache_tokens: int = 1 << 20,
        page_tokens: int = 16,
    ) -> None:
        self.info = TargetInfo(
            name="table",
            vocab_size=vocab_size,
            max_positions=max_positions,
            cache_tokens=cache_tokens,
            page_tokens=page_tokens,
            taps=frozenset({"last"}),
            shares_pages=True,
        )
        self.table = np.random.default_rng(seed).normal(0, spread, (vocab_size,) * 3)
        self._cache: dict[int, list[int]] = {}
        self._books = PageBooks(cache_tokens // page_tokens, page_tokens)
        self._texts: dict[int, list[int]] = {}  # what stands in each page that was written
        self._forwarded: Draft | None = None

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """Score the wanted nodes. Raises ValueError if a row's start is not where its cache ends,
        CapacityError if there are too few pages."""
        before = np.where(draft.parents < 0, 0, draft.tokens[draft.parents])
        for slot, start, first in zip(
            draft.slots.tolist(), draft.starts.tolist(), draft.offsets.tolist(), strict=False
        ):
            cached = self._cache.get(slot, ())
            if len(cached) != start:
                raise ValueError(f"slot {slot} starts at {start}, but {len(cached)} tokens are cached")
            if cached:
                before[first] = cached[-1]
        ends = draft.starts + np.diff(draft.offsets)
        self._books.reserve(dict(zip(draft.slots.tolist(), ends.tolist(), strict=True)))
        self._forwarded = draft
        scored = draft.scored
        features = {"last": self.table[before, draft.tokens]} if "last" in taps else {}
        return Scores(self.table[before[scored], draft.tokens[scored]], features)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Keep known tokens and paths. Raises ValueError if a path is none, or belongs to no forward."""
        if draft is not self._forwarded:
            raise ValueError("commit belongs to the last forward, got another draft")
        self._forwarded = None
        tokens, parents, offsets = draft.tokens.tolist(), draft.parents.tolist(), draft.offsets.tolist()
        for row, (slot, path) in enumerate(zip(draft.slots.tolist(), verdict.paths, strict=True)):
            root = draft.roots[row]
            known = offsets[row + 1] if root < 0 else root + 1
            for above, node in zip([root, *path], path, strict=False):
                if parents[node] != above:
                    raise ValueError(f"path {path} of row {row} is none: {above} is not above {node}")
            cache = self._cache.setdefault(slot, [])
            cache.extend(tokens[offsets[row] : known])
            cache.extend(tokens[node] for node in path)
            self._write(slot, int(draft.starts[row]))

    def _write(self, slot: int, start: int) -> None:
        """Put the sequence's tokens from `start` on into its pages. Raises ValueError if others have such a
        page, too."""
        cache, size = self._cache[slot], self.info.page_tokens
        for place, page in enumerate(self._books.of(slot)[start // size :], start // size):
            text = cache[place * size : (place + 1) * size]
            if text:
                if self._books.uses(page) > 1:
                    raise ValueError(f"slot {slot} writes into page {page}, which others have, too")
                self._texts[page] = text

    def pages(self, slot: int) -> Sequence[int]:
        """See `paceline.core.PageSharing`."""
        return self._books.of(slot)[: len(self._cache.get(slot, ())) // self.info.page_tokens]

    def adopt(self, slot: int, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`. Raises ValueError if a page is not full, too."""
        self._books.adopt(slot, pages)
        if any(len(self._texts[page]) < self.info.page_tokens for page in pages):
            raise ValueError(f"a page of {list(pages)} is not full")
        self._cache[slot] = [token for page in pages for token in self._texts[page]]

    def hold(self, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self._books.hold(pages)

    def drop(self, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self._books.drop(pages)

    @property
    def free_pages(self) -> int:
        """Pages that nobody has."""
        return self._books.free

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        for slot in slots:
            self._cache.pop(slot, None)
        self._books.release(slots)
