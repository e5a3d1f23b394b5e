"""Trees that grow at the likeliest token, as long as it pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import TypeVar

from paceline.core import Tree

State = TypeVar("State")
"""What is known at a node."""

MIN_PROBABILITY = 0.07
"""Where a further drafted token stops to pay on two cores, for one request; a policy may know better."""


def best_first(
    root: State,
    followers: Callable[[State], Iterable[tuple[int, float, State]]],
    nodes: int,
    depth: int,
    min_probability: float,
) -> Tree:
    """A tree of fixed tokens, grown at the node that is likeliest to be reached.

    followers: what may follow a node: (token, confidence that it is accepted once the node was, its own
    state), each token once; nodes, depth: limits of the tree; min_probability: what the first token's
    probability must be. The i-th needs i times as much, for every further token costs a pass more than the
    one before.
    """
    tokens: list[int] = []
    parents: list[int] = []
    confidences: list[float] = []
    heap: list[tuple[float, int, int, float, int, int, State]] = []
    order = 0  # of equally likely tokens the one found first; states are never compared
    parent, level, probability, state = -1, 0, 1.0, root
    while True:
        if level < depth:
            for token, confidence, below in followers(state):
                order += 1
                reached = probability * confidence
                heappush(heap, (-reached, order, token, confidence, parent, level + 1, below))
        if not heap or len(tokens) == nodes:
            break
        reached, _, token, confidence, above, level, state = heappop(heap)
        probability = -reached
        if probability < min_probability * (len(tokens) + 1):
            break
        parent = len(tokens)
        tokens.append(token)
        parents.append(above)
        confidences.append(confidence)
    return Tree(tokens, parents, confidences=confidences)
