"""Where the time of a step goes."""

from __future__ import annotations

from collections.abc import Callable

TARGET_STAGES = ("forward", "commit")


class Stopwatch:
    """Seconds spent per stage since the engine started. Cheap: one clock read per stage. clock: seconds,
    from any start."""

    __slots__ = ("_last", "clock", "seconds")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = dict.fromkeys(
            ("plan", "propose", "pack", "forward", "rule", "commit", "observe", "apply"), 0.0
        )
        self._last = clock()

    def start(self) -> None:
        """A step begins; the time since the last one is nobody's."""
        self._last = self.clock()

    def lap(self, stage: str) -> float:
        """The time since the last call went into this stage; how many seconds it was."""
        now = self.clock()
        passed = now - self._last
        self.seconds[stage] += passed
        self._last = now
        return passed

    def read(self, stage: str) -> tuple[float, float]:
        """Seconds inside the target and seconds in all, up to now; `stage` is the one running."""
        self.lap(stage)
        return sum(self.seconds[name] for name in TARGET_STAGES), sum(self.seconds.values())
