"""How likely proposed tokens are really accepted: what drafters claim, corrected by what happened.

A proposal falls into a cell by who proposed it (the parts of a mixture, as a set), whether it is a draft's
first token or a later one, and how confident they were, which is where the length of a match shows. Each
cell counts its hits as a Beta distribution does, with forgetting: an average over about the last `MEMORY`
proposals. It starts at the drafter's own claim, times how much of such claims the same sources kept lately:
so a few dozen proposals put right what is too sure of itself everywhere, as at another temperature. Each
request has a factor beside that, for how much better or worse than the average the same sources do in it.

What was proposed but not scored is counted as well, as far as the answer shows the token that stands in its
place: under the rule `match` answers do not depend on what was drafted, so this costs no pass and is not
biased by what was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core import UNSURE, Tree

BUCKETS = 24
PRIOR = 8.0
"""The drafter's claim counts as so many proposals."""
MEMORY = 400.0
REQUEST_PRIOR = 16.0
REQUEST_MEMORY = 0.95
"""What a request's own proposals keep of their weight with each further one."""
SOURCE_PRIOR = 4.0
SOURCE_MEMORY = 0.995
"""What claims keep of their weight with each further one of the same sources."""
SUREST = 0.99


class Calibration:
    """Estimates for the proposals of one drafter."""

    def __init__(self) -> None:
        self._rates: dict[int, float] = {}
        self._weights: dict[int, float] = {}
        self._claims: dict[int, tuple[float, float]] = {}  # by source: kept and made
        self._requests: dict[int, dict[int, tuple[float, float]]] = {}

    def estimate(self, slot: int, tree: Tree) -> tuple[list[int], list[float]]:
        """Each node's cell, and the probability that its whole path is accepted."""
        rates = self._rates
        own = self._requests.get(slot) or {}
        cells: list[int] = []
        paths: list[float] = []
        count = len(tree.tokens)
        confidences = tree.confidences or [UNSURE] * count
        sources = tree.sources or [1] * count
        for parent, confidence, source in zip(tree.parents, confidences, sources, strict=True):
            cell = (2 * source + (parent >= 0)) * BUCKETS + int(confidence * (BUCKETS - 0.001))
            rate = rates.get(cell)
            if rate is None:
                rate = confidence * self._trust(source)
            if source in own:
                hits, expected = own[source]
                rate *= (hits + REQUEST_PRIOR) / (expected + REQUEST_PRIOR)
            if rate > SUREST:
                rate = SUREST
            cells.append(cell)
            paths.append(rate * paths[parent] if parent >= 0 else rate)
        return cells, paths

    def learn(self, slot: int, tree: Tree, cells: Sequence[int], emitted: Sequence[int]) -> None:
        """The answer went on with these tokens; `cells` as `estimate` gave them."""
        rates, weights = self._rates, self._weights
        own = self._requests.setdefault(slot, {})
        reached = {-1: 0}  # nodes whose path was emitted, and how many tokens it has
        for node, parent in enumerate(tree.parents):
            depth = reached.get(parent)
            if depth is None or depth == len(emitted):
                continue
            hit = tree.tokens[node] == emitted[depth]
            if hit:
                reached[node] = depth + 1
            cell = cells[node]
            rate = rates.get(cell)
            source = cell // (2 * BUCKETS)
            claim = tree.confidences[node] if tree.confidences else UNSURE
            if rate is None:
                rate = claim * self._trust(source)
                weights[cell] = PRIOR
            kept, made = self._claims.get(source, (0.0, 0.0))
            self._claims[source] = (SOURCE_MEMORY * kept + hit, SOURCE_MEMORY * made + claim)
            weight = weights[cell] = min(weights[cell] + 1, MEMORY)
            rates[cell] = rate + (hit - rate) / weight
            hits, expected = own.get(source, (0.0, 0.0))
            own[source] = (REQUEST_MEMORY * hits + hit, REQUEST_MEMORY * expected + rate)

    def _trust(self, source: int) -> float:
        """How much of what these sources claimed came true."""
        kept, made = self._claims.get(source, (0.0, 0.0))
        return (kept + SOURCE_PRIOR) / (made + SOURCE_PRIOR)

    def forget(self, slot: int) -> None:
        """The sequence ended."""
        self._requests.pop(slot, None)
