"""From timed answers to figures: how fast, how sure, and what may be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.bench.measure import Answer, same

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEW = 5
"""An interval from fewer prompts would say nothing."""

FASTER, SLOWER, NOT_SHOWN, TOO_FEW = "faster", "slower", "not shown", "too few"

Turns = Sequence[Answer]
"""The answers to one prompt, turn by turn."""


def figures(prompts: Sequence[Turns]) -> dict[str, Any]:
    """How fast these answers came, and where the time after the first token went."""
    answers = [item for turns in prompts for item in turns]
    stats = [item.completion.stats for item in answers]
    tokens, passes = sum(s.tokens for s in stats), sum(s.passes for s in stats)
    drafted, accepted = sum(s.drafted for s in stats), sum(s.accepted for s in stats)
    decode_s = sum(item.decode_s for item in answers)
    target, draft = sum(item.target_s for item in answers), sum(item.draft_s for item in answers)
    shares = {"target": target, "draft": draft, "other": decode_s - target - draft}
    return {
        "prompts": len(prompts),
        "tau": divide(tokens, passes),
        "acceptance_rate": divide(accepted, drafted),
        "accepted_at_least": _accepted_at_least([s.accepted_lengths for s in stats], passes),
        "tokens": tokens,
        "tokens_per_second": divide(tokens, sum(item.seconds for item in answers)),
        "decode_tokens_per_second": divide(tokens - len(answers), decode_s),
        "share_of_decode_time": {name: divide(seconds, decode_s) for name, seconds in shares.items()},
    }


def _accepted_at_least(lengths: Sequence[Mapping[int, int]], passes: int) -> list[float]:
    """Of all passes those that kept 1, 2, 3, ... drafted tokens or more. τ is 1 and their sum, less
    a little where a drafted token ends an answer."""
    deepest = max((depth for own in lengths for depth in own), default=0)
    kept = [
        sum(count for own in lengths for length, count in own.items() if length >= depth)
        for depth in range(1, deepest + 1)
    ]
    return [divide(count, passes) for count in kept]


def compared(plain: Sequence[Turns], own: Sequence[Turns]) -> dict[str, Any]:
    """The figures of a drafter's answers beside plain decoding's of the same prompts.

    ratio is the median over prompts of plain's time by the drafter's, a prompt's turns together; low and
    high bound its bootstrap interval, and verdict says what follows. total_ratio compares the sums, so that
    long answers weigh more. Above 1 is faster.
    """
    decode = [(_decode(p), _decode(o)) for p, o in zip(plain, own, strict=True)]
    decode_ratios = [p / o for p, o in decode if min(p, o) > 0]
    return {
        **figures(own),
        **speed_up([_seconds(turns) for turns in plain], [_seconds(turns) for turns in own]),
        "decode_ratio": float(np.median(decode_ratios)) if decode_ratios else None,
        "decode_total_ratio": divide(sum(p for p, _ in decode), sum(o for _, o in decode)),
        "different_outputs": sum(
            not same(p.completion, o.completion)
            for plain_turns, own_turns in zip(plain, own, strict=True)
            for p, o in zip(plain_turns, own_turns, strict=True)
        ),
    }


def speed_up(plain: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """How many times as fast: seconds of plain decoding and of a drafter, one pair for each thing timed."""
    ratios = np.array(plain) / np.array(own)
    low, high = bootstrap_interval(ratios)
    return {
        "ratio": float(np.median(ratios)),
        "ratio_low": low,
        "ratio_high": high,
        "verdict": verdict(low, high, len(ratios)),
        "total_ratio": sum(plain) / sum(own),
    }


def verdict(low: float, high: float, count: int) -> str:
    """What may be said: nothing is called faster or slower whose interval includes 1, or that was timed so
    seldom that the interval says nothing."""
    if count < FEW:
        return TOO_FEW
    if low > 1:
        return FASTER
    return SLOWER if high < 1 else NOT_SHOWN


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the median of values [n]; the same numbers every time."""
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def divide(above: float, below: float) -> float:
    """0 where there was nothing to divide by: no drafts, or answers of one token."""
    return above / below if below else 0.0


def _seconds(turns: Turns) -> float:
    return sum(item.seconds for item in turns)


def _decode(turns: Turns) -> float:
    return sum(item.decode_s for item in turns)
