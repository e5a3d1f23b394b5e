"""A tiny exact model for proofs: the next token's logits are looked up by the last two tokens.

All is float64 and known, so that laws can be checked against the table itself. It keeps its own cache,
checks every promise that the engine makes about it, and fails loudly where one is broken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.core import Draft, Scores, TargetInfo, Verdict
from paceline.errors import CapacityError


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
        )
        self.table = np.random.default_rng(seed).normal(0, spread, (vocab_size,) * 3)
        self._cache: dict[int, list[int]] = {}
        self._forwarded: Draft | None = None

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """Score the wanted nodes. Raises ValueError if a row's start is not where its cache ends."""
        before = np.where(draft.parents < 0, 0, draft.tokens[draft.parents])
        for slot, start, first in zip(
            draft.slots.tolist(), draft.starts.tolist(), draft.offsets.tolist(), strict=False
        ):
            cached = self._cache.get(slot, ())
            if len(cached) != start:
                raise ValueError(f"slot {slot} starts at {start}, but {len(cached)} tokens are cached")
            if cached:
                before[first] = cached[-1]
        held = sum(map(len, self._cache.values())) + len(draft.tokens)
        if held > self.info.cache_tokens:
            raise CapacityError(f"{held} tokens do not fit in the cache of {self.info.cache_tokens}")
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

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        for slot in slots:
            self._cache.pop(slot, None)
