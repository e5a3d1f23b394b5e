"""Drafting with a model that drafts a whole block in one pass behind a text whose hidden states it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.core import Array, Step
from paceline.drafters._model import Path, Room
from paceline.drafting import Paths

Floats = NDArray[np.float32]


class BlockModel(Protocol):
    """A model that reads the target's hidden states of a text and drafts a block behind it. Of a sequence it
    keeps what it made of the hidden states, and nothing of a block.

    taps          the target's hidden states that it wants, in this order
    token_ids     int64 [D]: the target's id of each token that it can propose
    depths        drafted tokens of a block
    cache_tokens  positions of all sequences together
    """

    taps: Sequence[str]
    token_ids: NDArray[np.int64]
    depths: int
    cache_tokens: int

    def length(self, slot: int) -> int:
        """Positions of a sequence whose hidden states were given."""
        ...

    def extend(self, slots: Sequence[int], counts: Sequence[int], hidden_states: Sequence[Floats]) -> None:
        """Take in the hidden states of the next `counts[i]` positions of sequence `slots[i]`, one array
        [sum of counts, ...] for each tap."""
        ...

    def forward(self, slots: Sequence[int], tokens: Sequence[int]) -> Floats:
        """Logits float32 [B, depths, D] of the places behind each sequence's next token."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences. One that was never seen is no error."""
        ...


class MarkovModel(BlockModel, Protocol):
    """One where the token right before a place changes its law, and that says how likely it is right.

    trust  float32 [V]: what each token adds to the logit of the confidence of the place behind it
    """

    trust: Floats

    def draft(self, slots: Sequence[int], tokens: Sequence[int]) -> tuple[Floats, Floats]:
        """As `forward`, without what tokens add: the logits float32 [B, depths, D], and those of the
        confidences float32 [B, depths]."""
        ...

    def bias(self, tokens: Sequence[int]) -> Floats:
        """What tokens add to the logits of the place behind them, float32 [n, D]."""
        ...


class BlockScorer:
    """A `TrainedScorer` for such a model. Where it missed steps of a sequence, that begins anew with the next
    one."""

    whole = True

    def __init__(self, model: BlockModel) -> None:
        self.taps, self.token_ids = model.taps, model.token_ids
        self._model = model
        self._begins: dict[int, int] = {}  # by slot: position of the first hidden states that were seen
        self._drafted: dict[int, tuple[int, Any]] = {}  # by slot: tokens of the history, its block
        self._room = Room(model.cache_tokens, 1)

    def observe(self, step: Step) -> None:
        """Take in the hidden states of what was kept."""
        draft, offsets = step.draft, step.draft.offsets.tolist()
        slots, counts, kept = [], [], []
        for row, (slot, root) in enumerate(zip(step.view.slots, draft.roots, strict=True)):
            known = range(offsets[row], offsets[row + 1] if root < 0 else root + 1)
            own = [*known, *step.verdict.paths[row]]
            if self._end(slot) != draft.starts[row]:
                self.release([slot])
                self._begins[slot] = int(draft.starts[row])
            if not self._room.hold(slot, self._model.length(slot) + len(own)):
                self.release([slot])
                continue
            slots.append(slot)
            counts.append(len(own))
            kept += own
        if kept:
            self._model.extend(slots, counts, [step.scores.features[tap][kept] for tap in self.taps])

    def _end(self, slot: int) -> int:
        """The position whose hidden states come next; -1 where nothing is known."""
        return self._begins[slot] + self._model.length(slot) if slot in self._begins else -1

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """See `Scorer`."""
        return self._model.depths if self._end(slot) == len(history) - 1 else 0

    def draft(self, slots: Sequence[int], histories: Sequence[Sequence[int]]) -> None:
        """Run the model for those of these sequences whose history it has not drafted behind yet."""
        new = [
            row
            for row, (slot, history) in enumerate(zip(slots, histories, strict=True))
            if self._drafted.get(slot, (0,))[0] != len(history)
        ]
        if new:
            blocks = self._blocks([slots[row] for row in new], [histories[row][-1] for row in new])
            for row, own in zip(new, blocks, strict=True):
                self._drafted[slots[row]] = len(histories[row]), own

    def _blocks(self, slots: Sequence[int], tokens: Sequence[int]) -> Sequence[Any]:
        """The block of each sequence behind its next token: logits [depths, D]."""
        return list(self._model.forward(slots, tokens))

    def key(self, path: Path) -> object:
        """Paths of a history with the same key have the same law behind them."""
        return len(path)

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """See `Scorer`: behind a path of n tokens the logits [D] of place n."""
        return [self._drafted[slots[row]][1][len(path)] for row, path in paths]

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._model.release(slots)
        self._room.release(slots)
        for slot in slots:
            self._begins.pop(slot, None)
            self._drafted.pop(slot, None)


class MarkovScorer(BlockScorer):
    """For one whose laws depend on the token above."""

    def __init__(self, model: MarkovModel) -> None:
        super().__init__(model)
        self._markov = model

    def _blocks(self, slots: Sequence[int], tokens: Sequence[int]) -> Sequence[Any]:
        """Of each sequence logits [depths, D], and of confidences [depths]."""
        return list(zip(*self._markov.draft(slots, tokens), strict=True))

    def key(self, path: Path) -> object:
        """See `BlockScorer.key`."""
        return len(path), path[-1:]

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """See `Scorer`."""
        bias = self._markov.bias([path[-1] if path else histories[row][-1] for row, path in paths])
        for added, (row, path) in zip(bias, paths, strict=True):
            added += self._drafted[slots[row]][1][0][len(path)]
        return list(bias)

    def confidence(self, slot: int, history: Sequence[int], path: Path) -> float:
        """How likely a path is accepted, and what is drawn behind it, which it does not look at."""
        certain = self._drafted[slot][1][1][: len(path) + 1] + self._markov.trust[[history[-1], *path]]
        return float(np.prod(1 / (1 + np.exp(-certain.astype(np.float64)))))
