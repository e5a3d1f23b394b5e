"""A second model that reads along with the answers and drafts for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from paceline.core import Array, Target, Verdict
from paceline.drafters._model import Room, hang
from paceline.drafting import Paths
from paceline.transcript import Tokenizer


class LoadModel(Protocol):
    """From a model's name or file to a target with a cache about as large as the answered model's, and its
    tokenizer."""

    def __call__(
        self, model: str, *, threads: int | None = None, device: str | None = None, layers: int | None = None
    ) -> tuple[Target, Tokenizer | None]:
        """threads: of its passes, device: what runs it; None: as the answered model. layers: the first ones
        that are run; None: all. Raises ConfigError and ModelFileError."""
        ...


CHUNK = 128
"""Tokens that are read in one pass where a companion is far behind."""


class Companion:
    """A `Scorer` with a model and a cache of its own.

    Of every sequence its cache holds a beginning that never reaches the last token: that one is read anew
    with each draft. What was committed since the last draft is read when the next one is asked for, so that
    a sequence that nobody drafts for costs nothing.
    """

    def __init__(self, model: Target) -> None:
        self._model = model
        self._read: dict[int, int] = {}  # tokens of each sequence in the cache
        self._room = Room(model.info.cache_tokens, model.info.page_tokens)

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """How deep the tree may be: limited by the model's context, and by its cache."""
        depth = self._model.info.max_positions - len(history)
        return depth if depth > 0 and self._room.hold(slot, len(history) + nodes) else 0

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits [V] after each path, valid until the next call."""
        rows = sorted({row for row, _ in paths})
        read = {row: self._read.get(slots[row], 0) for row in rows}
        behind = {row: start for row, start in read.items() if len(histories[row]) - start > 1}
        level = {row: start for row, start in read.items() if row not in behind}
        found: dict[int, Array] = {}
        if behind:
            behind = {row: self._read_chunks(slots[row], histories[row], at) for row, at in behind.items()}
            mine = [place for place, (row, _) in enumerate(paths) if row in behind]
            found.update(self._pass(slots, histories, behind, paths, mine, known=0))
            if level:
                found = {place: logits.copy() for place, logits in found.items()}
        if level:
            mine = [place for place, (row, _) in enumerate(paths) if row in level]
            found.update(self._pass(slots, histories, level, paths, mine, known=1))
        return [found[place] for place in range(len(paths))]

    def _pass(
        self,
        slots: Sequence[int],
        histories: Sequence[Sequence[int]],
        starts: Mapping[int, int],
        paths: Paths,
        mine: Sequence[int],
        known: int,
    ) -> dict[int, Array]:
        """{place: logits} of the paths at these places. What the rows had not read is then in the cache,
        except for their last token."""
        fresh = {row: (start, histories[row][start:]) for row, start in starts.items()}
        draft, places = hang(slots, fresh, [paths[place] for place in mine], known)
        logits = self._model.forward(draft, frozenset()).logits
        if not known:
            self._model.commit(draft, _nothing(len(starts)))
            self._read.update((slots[row], len(histories[row]) - 1) for row in starts)
        return {place: logits[at] for place, at in zip(mine, places, strict=True)}

    def _read_chunks(self, slot: int, history: Sequence[int], start: int) -> int:
        """Read all but the last tokens, at most `CHUNK` and at least two; tokens that are read now."""
        while len(history) - start > CHUNK:
            end = min(start + CHUNK, len(history) - 2)
            draft, _ = hang([slot], {0: (start, history[start : end + 1])}, [(0, ())], known=0)
            self._model.forward(draft, frozenset())
            self._model.commit(draft, _nothing(1))
            self._read[slot] = start = end
        return start

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._model.release(slots)
        self._room.release(slots)
        for slot in slots:
            self._read.pop(slot, None)


def _nothing(rows: int) -> Verdict:
    """Known tokens are kept, drafted ones are not."""
    return Verdict([()] * rows, [-1] * rows)
