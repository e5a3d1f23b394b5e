"""The target drafts for itself without some of its layers; which ones is learned on the way.

A fixed share of the layers is left out, at first spread evenly. Then one that is left out changes places with
one that is not, for a while, and the change stays if more tokens were accepted with it than just before.

Sources: Zhang et al., "Draft & Verify", 2023 (arXiv 2309.08168), for drafts by skipped layers; Xia et al.,
"SWIFT", 2024 (arXiv 2410.06916), for choosing them while answering. They skip attention and feed-forward
parts one by one, here a layer goes as a whole; they compare sets on tokens already known, here by what was
accepted.
"""

from __future__ import annotations

import random

from paceline.core import Shortcut, Sketch, TargetInfo
from paceline.drafters._options import parse_growth
from paceline.drafters._sketch import Choice, Fixed, SelfDrafter
from paceline.errors import ConfigError

TRIAL = 64
"""Compared tokens after which a set of layers is judged."""
PATIENCE = 16
"""So many trials at most is the best set used between two attempts to better it."""


class Search:
    """Local search over sets of skipped layers. Each failure doubles the wait for the next attempt, so that
    a search that has come to its end costs little."""

    def __init__(self, layers: int, skipped: frozenset[int], depth: int) -> None:
        self.best = skipped
        self._movable = range(1, layers - 1)
        self._depth = depth
        self._trying: frozenset[int] | None = None
        self._best_rate = 0.0
        self._wait = 1
        self._tried = self._accepted = 0
        self._random = random.Random(0)

    def shortcut(self) -> tuple[Shortcut, int]:
        """Without the layers of the set on trial."""
        return Shortcut(self._trying or self.best), self._depth

    def learn(self, tried: int, accepted: int) -> None:
        """Count, and at the end of a trial decide."""
        self._tried += tried
        self._accepted += accepted
        if self._tried < (TRIAL if self._trying else TRIAL * self._wait):
            return
        rate, self._tried, self._accepted = self._accepted / self._tried, 0, 0
        if self._trying is None:
            self._best_rate = rate
            self._trying = self._neighbour()
        elif rate > self._best_rate:
            self.best, self._best_rate, self._wait = self._trying, rate, 1
            self._trying = self._neighbour()
        else:
            self._trying, self._wait = None, min(2 * self._wait, PATIENCE)

    def _neighbour(self) -> frozenset[int] | None:
        """The best set with one layer exchanged; None if there is no other set."""
        kept = [layer for layer in self._movable if layer not in self.best]
        if not kept:
            return None
        return self.best - {self._random.choice(sorted(self.best))} | {self._random.choice(kept)}


def build(
    info: TargetInfo,
    sketch: Sketch,
    *,
    share: float = 0.4,
    search: bool = True,
    widths: str = "1x1x1x1",
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> SelfDrafter:
    """Self-drafting by skipping layers.

    share            of the layers that are left out; the first and the last never are
    search           whether to look for better layers to leave out; otherwise they are spread evenly
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, or a target with too few layers.
    """
    growth = parse_growth("skip", widths, min_probability, drawn)
    if not 0 < share < 1:
        raise ConfigError(f"skip:share must be above 0, below 1, got {share}")
    if info.layers < 3:
        raise ConfigError(f"skip needs a target of at least 3 layers, {info.name} has {info.layers}")
    skipped = spread(info.layers, share)
    choice: Choice = Fixed(Shortcut(skipped), len(growth.widths))
    if search:
        choice = Search(info.layers, skipped, len(growth.widths))
    return SelfDrafter(sketch, choice, growth)


def spread(layers: int, share: float) -> frozenset[int]:
    """About this share of the layers, evenly spaced, without the first and the last."""
    count = min(max(1, round(share * layers)), layers - 2)
    return frozenset(1 + int((i + 0.5) * (layers - 2) / count) for i in range(count))
