"""How drafters that look things up make their trees: the likeliest token next, as long as it pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import TypeVar

from paceline.core import Tree

State = TypeVar("State")
"""What a drafter knows at a node."""

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


Place = tuple[float, Sequence[int], int]
"""Its weight, next to 1 for the heaviest; a text; and where in it: text[place] is proposed next."""

Matches = tuple[int, list[Place]]
"""How many tokens agree at the best place, and all places."""

LENGTHS = 17  # lengths of matches that are told apart; longer ones count as the last
FORGETTING = 0.995
UNSEEN_WEIGHT = 0.1
"""Weight of "none of these places", next to the heaviest, which weighs 1."""


def certainty(matched: int) -> float:
    """How often a text goes on as it did at an earlier place where so many last tokens stood.

    Measured on greedy answers of a small model: half of all matches of one token go on alike, three in
    four of four tokens, nine in ten of thirteen.
    """
    return 1 - 1.5 / (matched + 2)


def continuations(matches: Matches) -> Iterator[tuple[int, float, Matches]]:
    """The tokens at these places, as `best_first` wants them: a token's confidence is its share of the
    weight times the certainty of a match of that length. A negative token ends its text."""
    matched, places = matches
    followers: dict[int, list[Place]] = {}
    weights: dict[int, float] = {}
    total = UNSEEN_WEIGHT
    for weight, text, at in places:
        if at < len(text) and (token := text[at]) >= 0:
            total += weight
            if token in weights:
                weights[token] += weight
                followers[token].append((weight, text, at + 1))
            else:
                weights[token] = weight
                followers[token] = [(weight, text, at + 1)]
    share = certainty(matched) / total
    for token, weight in weights.items():
        yield token, share * weight, (matched + 1, followers[token])


class Calibration:
    """`continuations` scaled by how much of what they promised came true, by the length of the match.

    What `certainty` says holds for a text that goes on in its own way; how much another text is worth must
    be found out.
    """

    def __init__(self, weight: float) -> None:
        """weight: observations that the first guess, no scaling, counts for."""
        self._promised = [weight] * LENGTHS
        self._kept = [weight] * LENGTHS
        self._waiting: dict[int, tuple[int, Matches]] = {}

    def followers(self, matches: Matches) -> Iterator[tuple[int, float, Matches]]:
        """As `continuations`, with scaled confidences."""
        length = min(matches[0], LENGTHS - 1)
        scale = min(1.0, self._kept[length] / self._promised[length])
        for token, confidence, below in continuations(matches):
            yield token, scale * confidence, below

    def expect(self, slot: int, history: Sequence[int], matches: Matches) -> None:
        """This is where the sequence may go on; what was expected of it before has been decided."""
        end, earlier = self._waiting.get(slot, (len(history), matches))
        if end < len(history):
            length = min(earlier[0], LENGTHS - 1)
            confidences = {token: confidence for token, confidence, _ in continuations(earlier)}
            self._promised[length] = FORGETTING * self._promised[length] + sum(confidences.values())
            self._kept[length] = FORGETTING * self._kept[length] + (history[end] in confidences)
        self._waiting[slot] = len(history), matches

    def release(self, slot: int) -> None:
        """The sequence ended."""
        self._waiting.pop(slot, None)
