"""Token Recycling: what the target thought likely after a token when it last came by is proposed again.

A table holds the likeliest successors of every token seen, from the target's own logits, which a pass
computes anyway and plain decoding throws away. It is shared by all requests and lasts. The tree below the
last token grows best first. How likely a successor is accepted is learned: by its rank, and by how much of
the probability it had among the successors kept.

Helps everywhere a little, also where nothing repeats: it knows the language, not the text.
Source: Luo et al., "Turning Trash into Treasure", 2024 (arXiv 2408.08696) for the table and its update; there
the tree has one shape, chosen beforehand, and acceptance is not learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import exp

import numpy as np
from numpy.typing import NDArray

from paceline.core import NOTHING, Array, Budget, Drawn, Step, TargetInfo, Tree, View
from paceline.drafters._acceptance import SHARES, Acceptance, Successors
from paceline.errors import ConfigError
from paceline.lookups.best_first import MIN_PROBABILITY, best_first

SWEEP = 32  # stretches of a row of logits


class Recycling:
    """Proposes a tree for every row whose last token is in the table."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn = frozenset({Drawn.FIXED})
    branches = True

    def __init__(self, successors: int, max_nodes: int, min_probability: float) -> None:
        self._count = successors
        self._max_nodes = max_nodes
        self._min_probability = min_probability
        self._table: dict[int, Successors] = {}
        self._acceptance = Acceptance(successors)

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A tree for each row that decodes."""
        return [
            self._propose(history[-1], budget) if min(budget) > 0 else NOTHING
            for history, budget in zip(view.histories, budgets, strict=True)
        ]

    def _propose(self, token: int, budget: Budget) -> Tree:
        nodes = min(self._max_nodes, budget.nodes)
        return best_first(token, self._followers, nodes, budget.depth, self._min_probability)

    def _followers(self, token: int) -> Iterator[tuple[int, float, int]]:
        estimates = self._acceptance.estimates
        for rank, (successor, share) in enumerate(self._table.get(token, ())):
            yield successor, estimates[rank][share], successor

    def observe(self, step: Step) -> None:
        """Note the successors of every token that was kept, and which of those noted before came true."""
        draft = step.draft
        found: dict[int, Successors] = {}
        for row, root in enumerate(draft.roots):
            if root < 0:
                continue
            path = [root, *step.verdict.paths[row]]
            tokens = draft.tokens[path].tolist()
            for token, follower in pairwise((*tokens, step.verdict.next_tokens[row])):
                self._acceptance.learn(self._table.get(token, ()), follower)
            for token, place in zip(tokens, np.searchsorted(draft.scored, path).tolist(), strict=True):
                found[token] = likeliest(step.scores.logits[place], self._count)
        self._table |= found

    def release(self, slots: Sequence[int]) -> None:
        """Nothing is kept for one sequence alone."""


def likeliest(logits: Array, count: int) -> Successors:
    """The `count` likeliest tokens by logits [V]; all if there are no more.

    To sort or partition all of them would cost a good part of a pass. So the row is cut into SWEEP stretches,
    of which one sweep finds the largest value at each place; the likeliest tokens all are at those `count`
    places where it is largest, in one of the stretches.
    """
    logits = np.asarray(logits)
    width = len(logits) // SWEEP
    if width <= count:
        places = np.arange(len(logits))
    else:
        stretches = logits[: SWEEP * width].reshape(SWEEP, width)
        within = _largest(stretches.max(axis=0), count)[:, None] + np.arange(0, SWEEP * width, width)
        places = np.concatenate((within.ravel(), np.arange(SWEEP * width, len(logits))))
    top = places[_largest(logits[places], min(count, len(logits)))]
    ranked = sorted(zip(logits[top].tolist(), top.tolist(), strict=True), reverse=True)
    weights = [exp(value - ranked[0][0]) for value, _ in ranked]
    scale = SHARES / sum(weights)
    return tuple(
        (token, min(int(weight * scale), SHARES - 1))
        for weight, (_, token) in zip(weights, ranked, strict=True)
    )


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Where the `count` largest values are, in no order."""
    return np.argpartition(values, len(values) - count)[len(values) - count :]


def build(
    info: TargetInfo,
    *,
    successors: int = 8,
    max_nodes: int = 7,
    min_probability: float = MIN_PROBABILITY,
) -> Recycling:
    """Token Recycling.

    successors       successors kept per token, 1 to 64; the table grows to this many for every token of
                     the vocabulary
    max_nodes        drafted tokens per request and step at most
    min_probability  what the first drafted token's estimated probability must be; the i-th token needs
                     i times as much. A policy that knows what a token costs makes a better choice of
                     many: lower it then

    Raises ConfigError for a value out of range.
    """
    if not 1 <= successors <= 64:
        raise ConfigError(f"recycling:successors must be from 1 to 64, got {successors}")
    if max_nodes < 1:
        raise ConfigError(f"recycling:max_nodes must be at least 1, got {max_nodes}")
    if not 0 < min_probability <= 1:
        raise ConfigError(f"recycling:min_probability must be above 0, up to 1, got {min_probability}")
    return Recycling(successors, max_nodes, min_probability)
