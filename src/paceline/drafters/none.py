"""Proposes nothing: plain decoding, the baseline that every speed is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core import NOTHING, Budget, Drawn, Step, TargetInfo, Tree, View


class Plain:
    """The drafter that leaves everything to the target."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn: frozenset[Drawn] = frozenset()
    branches = False

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """Nothing for any row."""
        return [NOTHING] * len(budgets)

    def observe(self, step: Step) -> None:
        """There is nothing to learn."""

    def release(self, slots: Sequence[int]) -> None:
        """There is nothing to free."""


def build(info: TargetInfo) -> Plain:
    """Plain decoding; it has no options."""
    return Plain()
