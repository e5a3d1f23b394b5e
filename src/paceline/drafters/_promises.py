"""How much of what looked-up continuations promise comes true.

What their confidence says holds for a text that goes on in its own way; how much another text is worth
must be found out.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.lookups import Continuations

LENGTHS = 17  # lengths of matches that are told apart; longer ones count as the last
FORGETTING = 0.995


class Promises:
    """What was promised and kept, by the tokens that agreed.

    scales: what confidences are to be multiplied with, by tokens that agree.
    """

    def __init__(self, weight: float) -> None:
        """weight: observations that the first guess, a scale of 1, counts for."""
        self._promised = [weight] * LENGTHS
        self._kept = [weight] * LENGTHS
        self._waiting: dict[int, tuple[int, int, dict[int, float]]] = {}
        self.scales = [1.0] * LENGTHS

    def expect(self, slot: int, history: Sequence[int], found: Continuations) -> None:
        """This is where the sequence may go on; what was expected of it before has been decided."""
        decided = self._waiting.get(slot)
        if decided is not None and decided[0] < len(history):
            end, length, confidences = decided
            self._promised[length] = FORGETTING * self._promised[length] + sum(confidences.values())
            self._kept[length] = FORGETTING * self._kept[length] + (history[end] in confidences)
            self.scales[length] = min(1.0, self._kept[length] / self._promised[length])
        self._waiting[slot] = len(history), min(found.longest, LENGTHS - 1), found.first()

    def release(self, slot: int) -> None:
        """The sequence ended."""
        self._waiting.pop(slot, None)
