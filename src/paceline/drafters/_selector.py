"""Drafting with a model of blocks whose tokens a selector chooses behind each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.core import Array
from paceline.drafters._blocks import BlockModel, BlockScorer
from paceline.drafters._model import Path
from paceline.drafting import Paths

Floats = NDArray[np.float32]


class SelectorModel(BlockModel, Protocol):
    """One that names candidates for each place, and where the token above says more of them."""

    def draft(self, slots: Sequence[int], tokens: Sequence[int]) -> tuple[NDArray[np.int64], Floats, Floats]:
        """Of the places behind each sequence's next token: candidates int64 [B, depths, K], their logits
        float32 [B, depths, K], and what the selector reads there, float32 [B, depths, rank]."""
        ...

    def edges(self, above: int, gate: Floats, ids: NDArray[np.int64]) -> Floats:
        """What is added to the logits of candidates, int64 [K], behind a token: float32 [K]. gate: float32
        [rank], of their place."""
        ...


class SelectorScorer(BlockScorer):
    """A `TrainedScorer` for such a model."""

    def __init__(self, model: SelectorModel) -> None:
        super().__init__(model)
        self._selector = model

    def _blocks(self, slots: Sequence[int], tokens: Sequence[int]) -> Sequence[Any]:
        """Of each sequence candidates, logits, and what the selector reads."""
        return list(zip(*self._selector.draft(slots, tokens), strict=True))

    def key(self, path: Path) -> object:
        """See `BlockScorer.key`."""
        return len(path), path[-1:]

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """See `Scorer`: -inf for what is no candidate."""
        scores = np.full((len(paths), len(self.token_ids)), -np.inf, np.float32)
        for own, (row, path) in zip(scores, paths, strict=True):
            ids, logits, gates = (part[len(path)] for part in self._drafted[slots[row]][1])
            own[ids] = logits + self._selector.edges(path[-1] if path else histories[row][-1], gates, ids)
        return list(scores)
