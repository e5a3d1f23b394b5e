"""What an engine's steps were: a policy that hands everything on to another and takes notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paceline.core import Budget, Policy, Step, Tree, View


class Row(NamedTuple):
    """One request in a step in which it drew.

    drafted   tokens that were scored for it
    accepted  how many of them were kept
    refused   whether the draft went on where it was left: one more token could have been kept
    """

    drafted: int
    accepted: int
    refused: bool


class Pass(NamedTuple):
    """One step.

    tokens   in the pass, known and drafted
    seconds  of the target's pass
    reading  whether a prompt was read in it
    rows     those that drew
    """

    tokens: int
    seconds: float
    reading: bool
    rows: list[Row]


class Recorder:
    """A policy that decides as `inner` does; `passes` holds what happened.

    most: tokens that may be drafted for one request; by default as many as the engine allows
    """

    def __init__(self, inner: Policy, most: int | None = None) -> None:
        self.nodes = inner.nodes
        self._inner = inner
        self._most = most
        self.passes: list[Pass] = []

    def allot(self, view: View, limits: Sequence[Budget], nodes: int) -> Sequence[Budget]:
        """What `inner` allots."""
        if self._most is not None:
            limits = [Budget(min(limit.nodes, self._most), limit.depth) for limit in limits]
        return self._inner.allot(view, limits, nodes)

    def choose(self, view: View, trees: Sequence[Tree]) -> Sequence[Tree]:
        """What `inner` chooses."""
        return self._inner.choose(view, trees)

    def observe(self, step: Step) -> None:
        """Note the step, and let `inner` learn from it."""
        view, draft = step.view, step.draft
        reading = any(end - start > 1 for start, end in zip(view.starts, view.ends, strict=True))
        rows = []
        parents = set(draft.parents.tolist())
        for row, root in enumerate(draft.roots):
            if root >= 0:
                path = step.verdict.paths[row]
                left = path[-1] if path else root
                drafted = int(draft.offsets[row + 1]) - root - 1
                rows.append(Row(drafted, len(path), left in parents))
        self.passes.append(Pass(len(draft.tokens), step.seconds, reading, rows))
        self._inner.observe(step)

    def release(self, slots: Sequence[int]) -> None:
        """These sequences ended."""
        self._inner.release(slots)


def by_position(passes: Sequence[Pass]) -> list[tuple[int, int]]:
    """(kept, tried) for each position of a draft: tried where all before it were kept and there was one."""
    counts: list[list[int]] = []
    for item in passes:
        for row in item.rows:
            for place in range(row.accepted + row.refused):
                if place == len(counts):
                    counts.append([0, 0])
                counts[place][0] += place < row.accepted
                counts[place][1] += 1
    return [(kept, tried) for kept, tried in counts]
