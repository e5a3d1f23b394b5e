"""Hidden states out of the passes that answer requests anyway."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paceline.core import NOTHING, Budget, Drawn, Step, Tree, View
from paceline.errors import TrainingError
from paceline.models.bfloat16 import to_bfloat16


class Recorder:
    """A drafter that proposes nothing and keeps the features it sees.

    Requests are told apart by their seeds, so each needs one of its own. A request that was preempted is read
    anew, and what is kept of it is written over.

    taps: the features that are kept, in this order
    """

    drawn: frozenset[Drawn] = frozenset()
    branches = False

    def __init__(self, taps: Sequence[str]) -> None:
        self.needs, self.whole = frozenset(taps), True
        self._taps = tuple(taps)
        self._kept: dict[int, NDArray[np.uint16]] = {}
        self._lengths: dict[int, int] = {}

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """Nothing."""
        return [NOTHING] * len(budgets)

    def observe(self, step: Step) -> None:
        """Keep the features of each row's known tokens; there are no others."""
        features = step.scores.features
        states = np.stack([to_bfloat16(features[tap].astype(np.float32)) for tap in self._taps], 1)
        offsets = step.draft.offsets.tolist()
        for row, (seed, start) in enumerate(zip(step.view.seeds, step.view.starts, strict=True)):
            first, last = offsets[row], offsets[row + 1]
            end = start + last - first
            kept = self._kept.get(seed)
            if kept is None or len(kept) < end:
                larger = np.empty((max(2 * end, 256), *states.shape[1:]), np.uint16)
                if kept is not None:
                    larger[:start] = kept[:start]
                self._kept[seed] = kept = larger
            kept[start:end] = states[first:last]
            self._lengths[seed] = end

    def release(self, slots: Sequence[int]) -> None:
        """States are kept until they are taken."""

    def take(self, seed: int, length: int) -> NDArray[np.uint16]:
        """The states of a request's first `length` tokens, bfloat16 [length, taps, H], which are then kept no
        longer. Raises TrainingError if they were not seen."""
        kept, seen = self._kept.pop(seed, None), self._lengths.pop(seed, 0)
        if kept is None or seen < length:
            raise TrainingError(f"of {length} hidden states of an answer {seen} were seen")
        return kept[:length].copy()
