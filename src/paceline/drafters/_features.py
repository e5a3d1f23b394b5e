"""Drafting with a model that reads the target's hidden states beside the tokens.

Slot t of such a model reads the token at position t + 1 and the feature of position t, which is made of the
target's hidden states there; where the target has not been, the model's own output of the slot before. So all
that is committed of a text is read with true features, and a drafted path with the model's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.core import Array, Draft, Step
from paceline.drafters._model import Path, Room, hang
from paceline.drafting import Paths

Floats = NDArray[np.float32]

CHUNK = 256
"""Positions of a text that may wait until something is drafted; more of them are read at once."""


class FeatureModel(Protocol):
    """A model that reads features beside tokens, and yields features of its own. Of its cache it keeps what
    is known, and never what was drafted.

    taps          the target's hidden states that it wants, in this order
    token_ids     int64 [D]: the target's id of each token that it can propose
    cache_tokens  slots of all sequences together; page_tokens: they are handed out in pages of so many
    """

    taps: Sequence[str]
    token_ids: NDArray[np.int64]
    cache_tokens: int
    page_tokens: int

    def fuse(self, hidden_states: Sequence[Floats]) -> Floats:
        """Features float32 [N, H] of what the taps gave, one array [N, ...] for each."""
        ...

    def forward(self, draft: Draft, features: Floats) -> tuple[Floats, Floats]:
        """Logits float32 [S, D] after the scored nodes of a draft whose positions are slots, and the features
        that all its nodes yield, float32 [N, H]; neither where no node is scored."""
        ...

    def commit(self, draft: Draft) -> None:
        """Keep the known nodes of the last `forward`."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences. One that was never seen is no error."""
        ...


class ParallelModel(FeatureModel, Protocol):
    """Such a model that drafts all tokens of a path in one pass, by slots that read a mask.

    depths        drafted tokens along one path
    mask_token    what stands for each drafted token
    mask_feature  float32 [H]: the feature of each slot behind the text
    """

    depths: int
    mask_token: int
    mask_feature: Floats


@dataclass(slots=True)
class _Reading:
    """What is known of one sequence.

    base      position of the first feature that was seen: slot 0. Not 0 where steps were missed; the text
              before does not exist for the model then
    read      slots in the model's cache
    features  [n, H] of the slots from `read` on
    waiting   what the taps gave behind those, float32 [m, ...] each, of one step after the other: it costs
              little to keep, and nothing more where nothing is drafted
    yielded   {drafted path: the feature [H] that its last slot yielded} below a history of `length` tokens
    """

    base: int
    features: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    waiting: list[Sequence[Floats]] = field(default_factory=list)
    read: int = 0
    length: int = 0
    yielded: dict[Path, Floats] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The position whose feature comes next."""
        return self.base + self.read + self.unread

    @property
    def unread(self) -> int:
        """Positions that were seen and are not in the model's cache."""
        return len(self.features) + sum(len(states[0]) for states in self.waiting)

    def behind(self, history: Sequence[int]) -> Sequence[int]:
        """The tokens of the slots from `read` on."""
        return history[self.base + 1 + self.read :]


class FeatureScorer:
    """A `TrainedScorer` for such a model. Where it missed steps of a sequence, that begins anew with the next
    one."""

    whole = True

    def __init__(self, model: FeatureModel) -> None:
        self.taps, self.token_ids = model.taps, model.token_ids
        self._model = model
        self._readings: dict[int, _Reading] = {}
        self._room = Room(model.cache_tokens, model.page_tokens)

    def observe(self, step: Step) -> None:
        """Take in the features of what was kept."""
        draft, paths = step.draft, step.verdict.paths
        offsets = draft.offsets.tolist()
        kept: list[int] = []
        ends = []
        for row, root in enumerate(draft.roots):
            kept += range(offsets[row], offsets[row + 1] if root < 0 else root + 1)
            kept += paths[row]
            ends.append(len(kept))
        seen = [step.scores.features[tap][kept] for tap in self.taps]
        for row, slot in enumerate(step.view.slots):
            own = slice(ends[row - 1] if row else 0, ends[row])
            reading = self._readings.get(slot)
            if reading is None or reading.end != draft.starts[row]:
                self.release([slot])
                reading = self._readings[slot] = _Reading(int(draft.starts[row]))
            reading.waiting.append([states[own] for states in seen])
            if reading.unread > CHUNK:
                self._fuse([reading])
                self._read_ahead(slot, reading, reading.behind(step.view.histories[row]))

    def _fuse(self, readings: Iterable[_Reading]) -> None:
        """Make features of what waits."""
        due = [reading for reading in readings if reading.waiting]
        if not due:
            return
        steps = [states for reading in due for states in reading.waiting]
        fused = self._model.fuse([np.concatenate(parts) for parts in zip(*steps, strict=True)])
        first = 0
        for reading in due:
            last = first + reading.unread - len(reading.features)
            own = fused[first:last]
            reading.features = np.concatenate([reading.features, own]) if len(reading.features) else own
            reading.waiting.clear()
            first = last

    def _read_ahead(self, slot: int, reading: _Reading, behind: Sequence[int]) -> None:
        """Put into the cache what can be: the last token's slot is read with the draft below it."""
        count = min(len(reading.features), len(behind) - 1)
        if not self._room.hold(slot, reading.read + count):
            self.release([slot])
        elif count > 0:
            draft, _ = hang([slot], {0: (reading.read, behind[: count + 1])}, [], known=0)
            self._model.forward(draft, np.ascontiguousarray(reading.features[:count]))
            self._keep(draft, {0: reading}, [reading.read + count])

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """How deep a tree may be: 0 where the features of the text are not known, or the cache is full."""
        reading = self._readings.get(slot)
        if reading is None or reading.end != len(history) - 1:
            return 0
        return nodes if self._room.hold(slot, len(history) + nodes) else 0

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits [D] after each path, over the model's `token_ids`. The path above was scored before."""
        readings = {row: self._readings[slots[row]] for row in sorted({row for row, _ in paths})}
        self._fuse(readings.values())
        fresh = {row: (one.read, one.behind(histories[row])) for row, one in readings.items()}
        behind = {row: one for row, one in readings.items() if len(fresh[row][1]) > 1}
        level = {row: one for row, one in readings.items() if row not in behind}
        found: dict[int, Floats] = {}
        for known, rows in enumerate((behind, level)):
            mine = [place for place, (row, _) in enumerate(paths) if row in rows]
            if mine:
                own = {row: fresh[row] for row in rows}
                logits = self._pass(slots, histories, own, rows, [paths[place] for place in mine], known)
                found.update(zip(mine, logits, strict=True))
        return [found[place] for place in range(len(paths))]

    def _pass(
        self,
        slots: Sequence[int],
        histories: Sequence[Sequence[int]],
        fresh: Mapping[int, tuple[int, Sequence[int]]],
        rows: Mapping[int, _Reading],
        paths: Paths,
        known: int,
    ) -> list[Floats]:
        """Logits [D] after each path, all of them of these rows. fresh, known: see `hang`."""
        draft, places = hang(slots, fresh, paths, known)
        features, offsets = [], draft.offsets.tolist()
        tokens, parents = draft.tokens.tolist(), draft.parents.tolist()
        for place, (row, reading) in enumerate(rows.items()):
            if reading.length != len(histories[row]):
                reading.length = len(histories[row])
                reading.yielded.clear()
            features.append(reading.features)
            below = offsets[place] + len(reading.features)  # where the drafted nodes begin
            above: dict[int, Path] = {below - 1: ()}
            for node in range(below, offsets[place + 1]):
                path = above[parents[node]]
                above[node] = (*path, tokens[node])
                features.append(self._below(reading, path)[None])
        logits, fed_on = self._model.forward(draft, np.concatenate(features))
        nodes = draft.scored[places].tolist()
        for (row, path), node in zip(paths, nodes, strict=True):
            rows[row].yielded[path] = fed_on[node]
        if not known:
            self._keep(draft, rows, [start + len(text) - 1 for start, text in fresh.values()])
        return [logits[place] for place in places]

    def _below(self, reading: _Reading, path: Path) -> Floats:
        """The feature [H] of a slot below a drafted path."""
        return reading.yielded[path]

    def _keep(self, draft: Draft, rows: Mapping[int, _Reading], ends: Sequence[int]) -> None:
        self._model.commit(draft)
        for reading, end in zip(rows.values(), ends, strict=True):
            reading.features = reading.features[end - reading.read :]
            reading.read = end

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._model.release(slots)
        self._room.release(slots)
        for slot in slots:
            self._readings.pop(slot, None)


class ParallelScorer(FeatureScorer):
    """A `TrainedScorer` for a model that drafts in one pass: what follows a path does not depend on the
    tokens in it, so the first question about a history is answered for all paths below it."""

    _model: ParallelModel

    def __init__(self, model: ParallelModel) -> None:
        super().__init__(model)
        self._drafted: dict[int, tuple[int, list[Array]]] = {}
        """{slot: (the history's length, the logits [D] of each depth)}"""

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """As deep as one pass drafts; 0 where the text's features are not known, or the cache is full."""
        return super().room(slot, history, self._model.depths)

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits [D] after each path, over the model's `token_ids`."""
        depths, mask = self._model.depths, (self._model.mask_token,)
        new = [
            row
            for row in sorted({row for row, _ in paths})
            if self._drafted.get(slots[row], (0,))[0] != len(histories[row])
        ]
        if new:
            masked = [(row, mask * depth) for row in new for depth in range(depths)]
            logits = super().score(slots, histories, masked)
            for place, row in enumerate(new):
                own = logits[place * depths : (place + 1) * depths]
                self._drafted[slots[row]] = len(histories[row]), own
        return [self._drafted[slots[row]][1][len(path)] for row, path in paths]

    def _below(self, reading: _Reading, path: Path) -> Floats:
        return self._model.mask_feature

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        super().release(slots)
        for slot in slots:
            self._drafted.pop(slot, None)
