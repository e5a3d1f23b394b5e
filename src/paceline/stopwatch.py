"""Where the time of a step goes."""

from __future__ import annotations

from time import perf_counter

TARGET_STAGES = ("forward", "commit")


class Stopwatch:
    """Seconds spent per stage since the engine started. Cheap: one clock read per stage."""

    __slots__ = ("_last", "seconds")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(
            ("plan", "propose", "pack", "forward", "rule", "commit", "observe", "apply"), 0.0
        )
        self._last = perf_counter()

    def start(self) -> None:
        """A step begins; the time since the last one is nobody's."""
        self._last = perf_counter()

    def lap(self, stage: str) -> float:
        """The time since the last call went into this stage; how many seconds it was."""
        now = perf_counter()
        passed = now - self._last
        self.seconds[stage] += passed
        self._last = now
        return passed

    def read(self, stage: str) -> tuple[float, float]:
        """Seconds inside the target and seconds in all, up to now; `stage` is the one running."""
        self.lap(stage)
        return sum(self.seconds[name] for name in TARGET_STAGES), sum(self.seconds.values())
