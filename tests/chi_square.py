"""Chi-square tests without SciPy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist


def chi_square(observed: Sequence[Hashable], expected: Mapping[Hashable, float]) -> float:
    """How unlikely the observed outcomes are under the expected law: a p-value.

    Outcomes expected fewer than five times are counted together. An outcome of probability zero that was
    observed gives 0. The tail is the Wilson-Hilferty approximation, good to a few per cent of p.
    """
    counts = dict.fromkeys(expected, 0)
    for outcome in observed:
        if expected.get(outcome, 0) <= 0:
            return 0.0
        counts[outcome] += 1
    cells, rare = [], [0.0, 0.0]
    for outcome, probability in expected.items():
        mean = probability * len(observed)
        if mean >= 5:
            cells.append((counts[outcome], mean))
        else:
            rare = [rare[0] + counts[outcome], rare[1] + mean]
    if rare[1] >= 5:
        cells.append((rare[0], rare[1]))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    freedom = len(cells) - 1
    spread = 2 / (9 * freedom)
    return 1 - NormalDist().cdf(((statistic / freedom) ** (1 / 3) - 1 + spread) / spread**0.5)
