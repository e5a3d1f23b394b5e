"""Passes that look ahead: further nodes behind those that a token is drawn at, see
`paceline.core.LookAhead`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.core import LAST, Draft, Scores, TargetInfo
from paceline.errors import CapacityError, ConfigError

Run = Callable[[Draft, frozenset[str], tuple[str, ...]], Scores]
"""A target's pass with these taps of its own. What stands for a token beyond its vocabulary is read from what
was lent under these names, one behind the other."""


class Lent:
    """The embeddings that drafters have lent a target.

    embeddings  {tap: float32 [L, H]}
    """

    def __init__(self, width: int, most: int) -> None:
        """width: H of the target; most: the largest L."""
        self.embeddings: dict[str, NDArray[np.float32]] = {}
        self._width, self._most = width, most

    def take(self, embeddings: NDArray[np.float32], info: TargetInfo) -> tuple[str, TargetInfo]:
        """The tap of these embeddings, and what the target can do with them.

        Raises ConfigError for embeddings of another width, or more than positions can be had behind a text's
        end.
        """
        if embeddings.shape[1:] != (self._width,) or not 1 <= len(embeddings) <= self._most:
            raise ConfigError(
                f"{info.name} looks ahead with 1 to {self._most} embeddings {self._width} wide, got "
                f"{list(embeddings.shape)}"
            )
        for tap, known in self.embeddings.items():
            if np.array_equal(known, embeddings):
                return tap, info
        tap = f"ahead.{len(self.embeddings)}"
        self.embeddings[tap] = np.array(embeddings, np.float32)
        return tap, replace(info, taps=info.taps | {tap})

    def forward(self, draft: Draft, taps: frozenset[str], vocab_size: int, run: Run) -> Scores:
        """The scores of a pass with all these taps, of which some may be ours. Raises like `run`."""
        lent = tuple(sorted(taps & self.embeddings.keys()))
        taps = taps.difference(lent)
        if lent and max(draft.roots) >= 0:
            try:
                return self._ahead(draft, taps, lent, vocab_size, run)
            except CapacityError:
                pass  # only drafts need pads
        scores = run(draft, taps, ())
        unknown = {tap: self._nothing(draft, tap) for tap in lent}
        return Scores(scores.logits, {**scores.features, **unknown})

    def _ahead(
        self, draft: Draft, taps: frozenset[str], lent: tuple[str, ...], vocab_size: int, run: Run
    ) -> Scores:
        lengths = [len(self.embeddings[tap]) for tap in lent]
        ahead = with_pads(draft, lengths, vocab_size)
        scores = run(ahead.draft, taps | {LAST}, lent)
        features = {tap: scores.features[tap][ahead.nodes] for tap in taps}
        first = 0
        for tap, length in zip(lent, lengths, strict=True):
            features[tap] = self._nothing(draft, tap)
            features[tap][ahead.shown] = scores.features[LAST][ahead.pads[:, first : first + length]]
            first += length
        return Scores(scores.logits, features)

    def _nothing(self, draft: Draft, tap: str) -> NDArray[np.float32]:
        return np.full((len(draft.tokens), *self.embeddings[tap].shape), np.nan, np.float32)


class Ahead(NamedTuple):
    """draft  with pads in each row, behind the row's own nodes
    nodes  int64 [N]: where the nodes are that were there before
    shown  int64 [n]: those of them, as they were numbered before, that have pads: roots and drafted nodes
    pads   int64 [n, P]: where their pads are, chain behind chain
    """

    draft: Draft
    nodes: NDArray[np.int64]
    shown: NDArray[np.int64]
    pads: NDArray[np.int64]


def with_pads(draft: Draft, lengths: Sequence[int], first: int) -> Ahead:
    """lengths: of the chains that hang below each node; first: the token that stands for the first pad, those
    after it are the others."""
    sizes = np.diff(draft.offsets).astype(np.int64)
    ends = draft.offsets[1:].tolist()
    drawn_at = [range(root, end if root >= 0 else root) for root, end in zip(draft.roots, ends, strict=True)]
    shown = np.array([node for nodes in drawn_at for node in nodes], np.int64)
    along = np.concatenate([np.arange(length) for length in lengths])
    added = np.array([len(nodes) for nodes in drawn_at]) * len(along)
    offsets = np.concatenate(([0], np.cumsum(sizes + added)))
    nodes = np.arange(len(draft.tokens)) + np.repeat(offsets[:-1] - draft.offsets[:-1], sizes)
    pads = np.setdiff1d(np.arange(offsets[-1]), nodes, assume_unique=True).reshape(-1, len(along))
    tokens, parents, positions = (np.empty(offsets[-1], np.int32) for _ in range(3))
    tokens[nodes], positions[nodes] = draft.tokens, draft.positions
    parents[nodes] = np.where(draft.parents < 0, -1, nodes[draft.parents])
    tokens[pads] = first + np.arange(len(along))
    parents[pads] = np.where(along == 0, nodes[shown][:, None], pads - 1)
    positions[pads] = draft.positions[shown][:, None] + 1 + along
    extended = replace(
        draft,
        offsets=offsets.astype(np.int32),
        tokens=tokens,
        parents=parents,
        positions=positions,
        roots=[int(nodes[root]) if root >= 0 else -1 for root in draft.roots],
        scored=nodes[draft.scored].astype(np.int32),
    )
    return Ahead(extended, nodes, shown, pads)
