"""Passes that look ahead: further nodes behind those that a token is drawn at, see
`paceline.core.LookAhead`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.core import Draft


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
