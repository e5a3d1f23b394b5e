"""Measuring what passes cost when a model is loaded, once per machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from paceline.core import Draft, Target, Verdict
from paceline.models.cache import write_atomically

MEASURED = (1, 2, 4, 8, 16, 32)
"""Tokens in the passes that are timed."""
SMALL = 8
"""Tokens in passes that do not slow down what comes behind them: behind one over 32 tokens, passes over one
take longer for a while than in an answer."""
CONTEXT = 64
ROUNDS = 3
SECONDS_EACH = 0.05
"""Passes of one size go on for so long, and the later half counts: one token behind others of its kind is
what plain decoding is made of. Small ones in rounds, because a machine gets faster and slower."""
LEAST_PASSES = 2
EDITION = "2"
"""Profiles that were measured in another way are not found again."""
SLOT = 0


def profile(target: Target) -> dict[int, float]:
    """{tokens in a pass: seconds}, of a target that holds no sequence. Small passes come first."""
    sizes = [n for n in MEASURED if CONTEXT + n <= min(target.info.max_positions, target.info.cache_tokens)]
    draft = _draft(0, CONTEXT)
    target.forward(draft, frozenset())
    target.commit(draft, Verdict([[]], [-1]))
    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    small = [n for n in sizes if n <= SMALL]
    for n in [*small * ROUNDS, *sizes[len(small) :]]:
        seconds[n] += _time(target, _draft(CONTEXT, n))
    target.release([SLOT])
    return {n: median(times) for n, times in seconds.items()}


def _time(target: Target, draft: Draft) -> list[float]:
    """Seconds of passes over the same draft, the later half of them."""
    seconds: list[float] = []
    while len(seconds) < LEAST_PASSES or sum(seconds) < SECONDS_EACH:
        start = perf_counter()
        target.forward(draft, frozenset())
        seconds.append(perf_counter() - start)
    return seconds[len(seconds) // 2 :]


def kept_profile(target: Target, folder: Path, key: Sequence[str]) -> dict[int, float]:
    """The profile that the folder holds for this key, else a new one, which is put there if it can be."""
    path = folder / (hashlib.sha256("\0".join((EDITION, *key)).encode()).hexdigest()[:32] + ".json")
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
