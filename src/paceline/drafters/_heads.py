"""Drafting from the hidden state behind which the target drew the last token, and with heads behind it.

That state is all that such a drafter knows of the text: there is no cache, and a sequence that was not
followed can be drafted for again after any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.core import Array, Step
from paceline.drafting import Paths

Floats = NDArray[np.float32]


class Heads(Protocol):
    """One head for each further token.

    tap        the target's hidden states that they read
    depths     how many heads there are
    token_ids  int64 [D]: the target's id of each token that they can propose
    """

    tap: str
    depths: int
    token_ids: NDArray[np.int64]

    def forward(self, states: Floats, paths: Sequence[Sequence[int]]) -> Floats:
        """Logits float32 [N, D] of what follows each of N paths, behind the target's hidden states, float32
        [N, ...]. A path begins with the token that the target drew at its state."""
        ...


class LastStates:
    """The state behind which the target drew the last token of each sequence. tap: which states."""

    whole = False

    def __init__(self, tap: str) -> None:
        self.taps: Sequence[str] = (tap,)
        self._states: dict[int, tuple[int, Floats]] = {}
        """{slot: (the history's length, the state [...])}"""

    def observe(self, step: Step) -> None:
        """Take in the last states of the rows that drew a token, where they are numbers."""
        (tap,) = self.taps
        states = step.scores.features[tap]
        for row, root in enumerate(step.draft.roots):
            if root >= 0:
                path = step.verdict.paths[row]
                state = np.array(states[path[-1] if path else root], np.float32)
                if not np.isnan(np.min(state)):
                    length = step.view.ends[row] + len(path) + 1
                    self._states[step.view.slots[row]] = length, state

    def known(self, slot: int, history: Sequence[int]) -> bool:
        """Whether the last step was seen."""
        length, _ = self._states.get(slot, (0, None))
        return length == len(history)

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        for slot in slots:
            self._states.pop(slot, None)


class HeadScorer(LastStates):
    """A `TrainedScorer` for heads."""

    def __init__(self, heads: Heads) -> None:
        super().__init__(heads.tap)
        self.token_ids = heads.token_ids
        self._heads = heads

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """As deep as there are heads; 0 where the last step was missed."""
        return self._heads.depths if self.known(slot, history) else 0

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits [D] after each path, over the heads' `token_ids`."""
        states = np.stack([self._states[slots[row]][1] for row, _ in paths])
        return list(self._heads.forward(states, [(histories[row][-1], *path) for row, path in paths]))
