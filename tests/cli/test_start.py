"""How fast the package and the program start, and what they do not import."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 5


def median_seconds(*command: str) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def test_importing_paceline_takes_less_than_300_ms() -> None:
    # Python's own start is part of neither limit, but the second one is met with it.
    assert median_seconds("-c", "import paceline") - median_seconds("-c", "") < 0.3


def test_the_help_is_there_in_less_than_500_ms() -> None:
    assert median_seconds("-m", "paceline", "--help") < 0.5


def test_the_engine_needs_no_torch() -> None:
    modules = "paceline, paceline.engine, paceline.targets.native, paceline.pretrained, paceline.bench.speed"
    check = f"import sys, {modules}; print([name for name in sys.modules if name.startswith('torch')])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
