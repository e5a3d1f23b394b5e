"""What a pass of the target costs, by the number of tokens in it.

The curve is kept apart into its shape and one factor for all of it. A machine that gets slower, or a context
that gets longer, moves the factor within a few passes, wherever the passes are; the shape moves slowly, and
only where passes are measured. So numbers of tokens that were not tried lately do not look cheap or dear
only because they were last tried at another hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
"""Tokens in a pass at which the curve is kept; between them it is straight, behind them it goes on so."""
GUESS = 0.05
"""What a further token costs, in passes over one, where nothing was measured."""
FACTOR_RATE = 0.1
SHAPE_RATE = 0.02
FAR_OFF = 2.0
"""A pass that took more than this times what was expected, or less than its inverse, counts as that."""
REDRAW = 16


class PassCost:
    """Seconds of a pass over n tokens, never less for more tokens.

    measured: {tokens in a pass: seconds}, where it was measured; the rest is filled in.
    """

    def __init__(self, measured: Mapping[int, float] | None = None) -> None:
        self._shape = _filled(measured or {n: 1 + GUESS * (n - 1) for n in SIZES})
        self._factor = 1.0
        self._guessed = not measured
        self._learned = 0
        self._table = _table(self._shape)

    def seconds(self, n: int) -> float:
        """Of a pass over n tokens."""
        return self.relative(n) * self._factor

    def relative(self, n: int) -> float:
        """The same, up to a factor that is the same for all n."""
        table = self._table
        last = len(table) - 1
        return table[n] if n <= last else table[last] + (n - last) * (table[last] - table[last - 1])

    def full(self, n: int) -> bool:
        """Whether arithmetic bounds a pass over n tokens, so that a drafted one costs what it saves."""
        return n >= SIZES[-1] and n * (self.relative(n + 1) - self.relative(n)) >= self.relative(n) / 2

    def learn(self, n: int, seconds: float) -> None:
        """A pass over n tokens took so long. One that reads much of a prompt says nothing of smaller ones."""
        if n > SIZES[-1] or seconds <= 0:
            return
        ratio = seconds / self.seconds(n)
        if self._guessed:
            self._factor, self._guessed = self._factor * ratio, False
            return
        self._learned += 1
        ratio = min(max(ratio, 1 / FAR_OFF), FAR_OFF)
        self._factor *= 1 + FACTOR_RATE * (ratio - 1)
        shape = self._shape
        for place, (below, above) in enumerate(pairwise(SIZES)):
            if n <= above:
                share = (n - below) / (above - below)
                shape[place] *= 1 + SHAPE_RATE * (1 - share) * (ratio - 1)
                shape[place + 1] *= 1 + SHAPE_RATE * share * (ratio - 1)
                break
        if self._learned % REDRAW == 0:
            self._shape = _rising(shape)
            self._table = _table(self._shape)


def _filled(measured: Mapping[int, float]) -> list[float]:
    """Seconds at SIZES: straight between what was measured, and beyond it in proportion to its last rise."""
    known = sorted(measured.items())
    if len(known) == 1:
        known.append((known[0][0] + 1, known[0][1] * (1 + GUESS)))
    seconds = []
    for n in SIZES:
        for (low, first), (high, second) in pairwise(known):  # noqa: B007 - the last pair serves all beyond
            if n <= high:
                break
        seconds.append(max(first + (second - first) * (n - low) / (high - low), known[0][1] * 0.1))
    return _rising(seconds)


def _rising(values: list[float]) -> list[float]:
    """The nearest values that never fall (pool adjacent violators; Ayer et al., 1955)."""
    pools: list[list[float]] = []  # sum, count
    for value in values:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    return [total / count for total, count in pools for _ in range(int(count))]


def _table(shape: list[float]) -> list[float]:
    """Seconds for n = 0 to the largest of SIZES."""
    table = [shape[0]]
    for (low, high), (first, second) in zip(pairwise(SIZES), pairwise(shape), strict=True):
        table += [first + (second - first) * (n - low) / (high - low) for n in range(low, high)]
    return [*table, shape[-1]]
