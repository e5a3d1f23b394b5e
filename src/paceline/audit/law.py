"""Whether sampled answers have the target's law: the sequential test, fed with finished answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paceline.audit import orders
from paceline.audit.identity import Counts
from paceline.audit.orders import Followers
from paceline.audit.referee import Referee
from paceline.audit.sequential import SequentialTest, smallest_caught
from paceline.results import Completion
from paceline.sampling import SamplingParams

SHOWN = 10
POINTS = 100
"""A report's curve has about so many."""


class LawTest:
    """Judges sampled answers one after the other, and looks at the test after each."""

    def __init__(self, referee: Referee, alpha: float, seed: int) -> None:
        self.counts = Counts()
        self.faults: list[str] = []
        self.test = SequentialTest(orders.NAMES, alpha, seed)
        self._referee = referee
        self._last: tuple[str, SamplingParams, tuple[int, ...], float] | None = None

    @property
    def failed(self) -> bool:
        """Whether the answers are known not to be the target's."""
        return self.test.failed or bool(self.faults)

    def add(self, name: str, prompt: Sequence[int], done: Completion, params: SamplingParams) -> None:
        """Judge an answer that was drawn with a seed that no other answer had. name: of the prompt."""
        self.counts.add(done)
        if fault := self._referee.wrong_end(prompt, done, params):
            self.faults.append(f"the answer to prompt {name} {fault}")
        followers: Followers[int] = Followers()
        followers.read(prompt)
        log_chance = 0.0
        self.test.begin()
        for token, log_law in zip(
            done.token_ids, self._referee.laws(prompt, done.token_ids, params), strict=True
        ):
            law = np.exp(log_law)
            log_chance += float(log_law[token])
            self.test.add(orders.below(law, token, followers.expected()), float(law[token]))
            followers.read([token])
        asked = replace(params, seed=None)
        if self._last is not None and self._last[:2] == (name, asked):
            self.test.pair(self._last[2] == done.token_ids, self._last[3])
            self._last = None
        else:
            self._last = name, asked, done.token_ids, log_chance
        self.test.look()

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {**test_report(self.test), **_counts(self.counts), "faults": self.faults[:SHOWN]}


def _counts(counts: Counts) -> dict[str, int]:
    return {"answers": counts.answers, "drafted": counts.drafted, "accepted": counts.accepted,
            "rejected": counts.rejected, "passes": counts.passes}  # fmt: skip


def test_report(test: SequentialTest) -> dict[str, Any]:
    """A sequential test as JSON. The logarithms are to base 10; one that is infinite is null."""
    return {
        "tokens": test.tokens,
        "alpha": test.alpha,
        "log10_e": _base_10(test.log_e),
        "largest_log10_e": _base_10(test.largest_log_e),
        "by_order": {name: round(value, 3) for name, value in test.by_order.items()},
        "impossible": test.impossible,
        "failed": test.failed,
        "smallest_caught": smallest_caught(test.tokens, test.alpha, len(test.orders)),
        "curve": [(tokens, _base_10(value)) for tokens, value in _thinned(test.curve)],
    }


def _thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Some of the points, the first and the last among them."""
    step = -(-len(curve) // POINTS)
    return [*curve[:-1:step], curve[-1]]


def _base_10(value: float) -> float | None:
    return round(value / math.log(10), 3) if math.isfinite(value) else None
