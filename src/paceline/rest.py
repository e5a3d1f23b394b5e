"""Pausing what costs more time than it saves, and trying it again, more and more rarely."""

from __future__ import annotations

MEMORY = 0.97
"""What a balance keeps of its weight with each further step."""
FIRST_STEPS = 32
"""Steps before the first judgement; a step of several requests counts once for each."""
TRIAL_STEPS = 4
SHORTEST, LONGEST = 8, 256
"""Steps of a pause: after success, and after many trials in vain; then 4 steps of 260 are trials."""


class Rest:
    """Whether something that costs time works or rests.

    balance  seconds gained lately
    steps    that were worked in, once for each request
    """

    __slots__ = ("_left", "_pause", "balance", "resting", "steps")

    def __init__(self) -> None:
        self.balance = 0.0
        self._left = FIRST_STEPS
        self._pause = SHORTEST
        self.resting = False
        self.steps = 0

    def begin(self) -> bool:
        """A step begins; whether it is to be worked in."""
        if self.resting:
            self._left -= 1
            if self._left < 0:
                self.resting, self._left = False, TRIAL_STEPS
                self.balance = 0.0
        return not self.resting

    def worked(self, gained: float, requests: int = 1) -> None:
        """A step that was worked in for so many requests gained so many seconds: what was saved less what was
        spent. It says as much as so many steps for one."""
        self.steps += requests
        self.balance = MEMORY**requests * self.balance + gained
        self._left -= requests
        if self._left <= 0:
            self._judge()

    def hurry(self, pause: int) -> None:
        """Judge now. A pause has so many steps at least."""
        self._pause = max(self._pause, pause)
        self._judge()

    def _judge(self) -> None:
        if self.balance < 0:
            self.resting, self._left = True, self._pause
            self._pause = min(2 * self._pause, LONGEST)
        else:
            self._pause = SHORTEST
