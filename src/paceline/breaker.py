"""Leaving alone what fails again and again, and trying it again after a while: a circuit breaker.

Source of the pattern: Nygard, "Release It!", 2007.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

FAILURES = 3
WITHIN = 60.0
"""So many failures within so many seconds are too many."""
PAUSE = 30.0
"""Seconds until it is tried again."""


class Breaker:
    """Whether something that may fail is used. clock: seconds, from any start."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._until: float | None = None  # not to be used before then; when it is tried, still set

    @property
    def closed(self) -> bool:
        """Whether it may be used now: all is well, or it is time to try."""
        return self._until is None or self._clock() >= self._until

    def failed(self, *, once_is_enough: bool = False) -> None:
        """A failure: of a trial it is one too many, otherwise the third, unless one is enough."""
        now = self._clock()
        self._failures.append(now)
        often = len(self._failures) == FAILURES and now - self._failures[0] <= WITHIN
        if often or once_is_enough or self._until is not None:
            self._until = now + PAUSE
            self._failures.clear()

    def worked(self) -> None:
        """No failure: a trial, if it was one, went well."""
        self._until = None
