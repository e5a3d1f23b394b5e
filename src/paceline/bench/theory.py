"""What speculation should bring, by arithmetic: tokens per pass, what passes cost, where it breaks even.

A draft of g tokens, each accepted with probability a if those before it were, brings (1 - a^(g+1)) / (1 - a)
tokens per pass (Leviathan et al., 2023, arXiv 2211.17192). It costs v(g + 1), a pass over so many tokens, and
g c for the drafter, both in plain passes. With v = 1 and c = N / M, the sizes of draft and target model, the
ratio is the one that the scaling laws of speculative decoding maximise (Bozorgkhoo and Molybog, 2026, arXiv
2603.11053). On CPUs v is not 1, so it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Cost = Callable[[float], float]
"""Seconds of a pass by the number of tokens in it."""


def expected_tokens(acceptance: float, drafted: int) -> float:
    """Tokens per pass, the target's own included, with `drafted` tokens that are each accepted with this
    probability, 0 to 1, if all before were."""
    return sum(acceptance**place for place in range(drafted + 1))


def speed_up(acceptance: float, drafted: int, cost: Cost, draft_cost: float = 0.0, batch: int = 1) -> float:
    """How many times as fast as plain decoding. draft_cost: of one drafted token, in plain passes; batch:
    requests that share a pass, each with a draft of its own."""
    passes = cost(batch * (drafted + 1)) / cost(batch)
    return expected_tokens(acceptance, drafted) / (passes + drafted * draft_cost)


def best_drafted(
    acceptance: float, cost: Cost, draft_cost: float = 0.0, batch: int = 1, most: int = 32
) -> int:
    """The number of drafted tokens, 0 to `most`, that is fastest; of equal ones the smallest."""
    speeds = [speed_up(acceptance, drafted, cost, draft_cost, batch) for drafted in range(most + 1)]
    return int(np.argmax(speeds))


def break_even(drafted: int, cost: Cost, draft_cost: float = 0.0, batch: int = 1) -> float | None:
    """The probability of acceptance from which on drafting so many tokens is no loss; None where it is one
    even if every token is accepted."""
    if speed_up(1.0, drafted, cost, draft_cost, batch) < 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):  # the speed-up rises with the probability
        middle = (low + high) / 2
        if speed_up(middle, drafted, cost, draft_cost, batch) < 1:
            low = middle
        else:
            high = middle
    return high


def interpolated(seconds: Mapping[int, float]) -> Cost:
    """A cost from passes that were measured, {tokens: seconds}: straight between them, and beyond the last
    two as between these."""
    sizes: Sequence[int] = sorted(seconds)
    known = [seconds[size] for size in sizes]

    def cost(tokens: float) -> float:
        if tokens > sizes[-1] and len(sizes) > 1:
            slope = (known[-1] - known[-2]) / (sizes[-1] - sizes[-2])
            return known[-1] + max(0.0, slope) * (tokens - sizes[-1])
        return float(np.interp(tokens, sizes, known))

    return cost
