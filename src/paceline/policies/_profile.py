"""Measuring what passes cost when a model is loaded, once per machine."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import numpy as np

from paceline.core import Draft, Target, Verdict
from paceline.models.cache import write_atomically

MEASURED = (1, 2, 4, 8, 16, 32)
"""Tokens in the passes that are timed."""
CONTEXT = 64
ROUNDS = 5
TIME_LIMIT = 0.2
"""Seconds after which no further round begins; the first is always run whole."""
SLOT = 0


def profile(target: Target) -> dict[int, float]:
    """{tokens in a pass: median of its seconds}, of a target that holds no sequence."""
    sizes = [n for n in MEASURED if CONTEXT + n <= min(target.info.max_positions, target.info.cache_tokens)]
    begun = perf_counter()
    draft = _draft(0, CONTEXT)
    target.forward(draft, frozenset())
    target.commit(draft, Verdict([[]], [-1]))
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    target.forward(_draft(CONTEXT, sizes[0]), frozenset())  # one that does not count
    for _ in range(ROUNDS):
        for n in sizes:
            draft = _draft(CONTEXT, n)
            start = perf_counter()
            target.forward(draft, frozenset())
            seconds[n].append(perf_counter() - start)
        if perf_counter() - begun > TIME_LIMIT:
            break
    target.release([SLOT])
    return {n: statistics.median(times) for n, times in seconds.items()}


def kept_profile(target: Target, folder: Path, key: Sequence[str]) -> dict[int, float]:
    """The profile that the folder holds for this key, else a new one, which is put there if it can be."""
    path = folder / (hashlib.sha256("\0".join(key).encode()).hexdigest()[:32] + ".json")
    with suppress(OSError, ValueError, AttributeError, TypeError):
        found = {int(n): float(seconds) for n, seconds in json.loads(path.read_bytes()).items()}
        if found.keys() <= set(MEASURED) and all(0 < s < math.inf for s in found.values()) and found:
            return found
    measured = profile(target)
    with suppress(OSError), write_atomically(path) as file:
        file.write(json.dumps(measured).encode())
    return measured


def _draft(start: int, count: int) -> Draft:
    """A chain of the same token from position `start` on, nothing of it before position CONTEXT scored."""
    scored = start == CONTEXT
    return Draft(
        slots=np.array([SLOT], np.int32),
        offsets=np.array([0, count], np.int32),
        starts=np.array([start], np.int32),
        tokens=np.ones(count, np.int32),
        parents=np.arange(-1, count - 1, dtype=np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        roots=[0 if scored else -1],
        scored=np.arange(count if scored else 0, dtype=np.int32),
    )
