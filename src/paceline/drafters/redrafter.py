"""A small recurrent network that was trained for the target and reads on from its last hidden state.

The state behind which the target drew a token becomes the network's own; each token that follows changes it,
and it says what may come next. So each level of a tree takes a pass over the network, of the nodes that have
children. What it says is warped by the request's own controls and, under a rule that compares tokens, drawn
with the target's own noise.

Sources: Cheng et al., "Recurrent Drafter for Fast Speculative Decoding in Large Language Models", 2024 (arXiv
2403.09919); Li et al., "EAGLE-2", 2024 (arXiv 2406.16858), for the choice of nodes where the paper keeps
beams. The coupling by noise of positions is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.core import Array, TargetInfo
from paceline.drafters._heads import Floats, LastStates
from paceline.drafters._model import Path
from paceline.drafters._options import parse_growth
from paceline.drafters._trained import LoadTrained, TrainedDrafter, load_folder
from paceline.drafting import Paths


class RecurrentModel(Protocol):
    """A network that reads a path token by token.

    tap        the target's hidden states that it begins with
    token_ids  int64 [D]: the target's id of each token that it can propose
    """

    tap: str
    token_ids: NDArray[np.int64]

    def forward(self, states: Floats, tokens: Sequence[int]) -> tuple[Floats, Floats]:
        """Logits float32 [N, D] of what follows one more token behind each of N states, float32 [N, H], and
        the states behind it."""
        ...


class RecurrentScorer(LastStates):
    """A `TrainedScorer` for such a network."""

    def __init__(self, model: RecurrentModel) -> None:
        super().__init__(model.tap)
        self.token_ids = model.token_ids
        self._model = model
        self._reached: dict[int, tuple[int, dict[Path, Floats]]] = {}
        """{slot: (the history's length, the network's state [H] behind it and behind each drafted path)}"""

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """Any depth; 0 where the last step was missed."""
        return nodes if self.known(slot, history) else 0

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits [D] after each path, over the network's `token_ids`. The path above was scored before."""
        reached = [self._behind(slots[row], len(histories[row])) for row, _ in paths]
        begun = [self._states[slots[row]][1] for row, _ in paths]
        states = [
            own[path[:-1]] if path else first
            for own, first, (_, path) in zip(reached, begun, paths, strict=True)
        ]
        tokens = [path[-1] if path else histories[row][-1] for row, path in paths]
        logits, behind = self._model.forward(np.stack(states), tokens)
        for own, (_, path), state in zip(reached, paths, behind, strict=True):
            own[path] = state
        return list(logits)

    def _behind(self, slot: int, length: int) -> dict[Path, Floats]:
        if self._reached.get(slot, (0,))[0] != length:
            self._reached[slot] = length, {}
        return self._reached[slot][1]

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        super().release(slots)
        for slot in slots:
            self._reached.pop(slot, None)


def build(
    info: TargetInfo,
    load_trained: LoadTrained,
    *,
    model: str = "",
    widths: str = "1x1x1x1",
    frontier: int = 0,
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> TrainedDrafter:
    """A trained recurrent drafter.

    model            its folder, as `paceline train run --arch redrafter` writes it
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    frontier         under a rule that compares tokens only so many nodes of a level have children, the
                     likeliest, and of all tokens the likeliest are proposed (EAGLE-2); 0: all have
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for a
    drafter that was trained for another target.
    """
    growth = parse_growth("redrafter", widths, min_probability, drawn, frontier)
    scorer = RecurrentScorer(load_folder("redrafter", model, load_trained))
    return TrainedDrafter(scorer, growth, info.vocab_size)
