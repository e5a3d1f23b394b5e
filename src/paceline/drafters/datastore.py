"""Propose what followed the last tokens in the user's own files.

A datastore is made once, with `paceline datastore build`, and asked at every step: of all its places behind
the longest ends of the text so far, a sample is merged into a tree that grows best first. How far the files
can be trusted is learned.

Helps where answers repeat what stands in the files: code of a project, manuals, letters, earlier answers.
Source: He et al., "REST: Retrieval-Based Speculative Decoding", 2023 (arXiv 2311.08252).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paceline.core import NOTHING, Budget, Drawn, Step, TargetInfo, Tree, View
from paceline.drafters._promises import Promises
from paceline.errors import ConfigError
from paceline.lookups import Continuations
from paceline.lookups.best_first import MIN_PROBABILITY
from paceline.lookups.reference import LONGEST
from paceline.stores.datastore import Datastore

LOOKED_AT = 24  # places that are merged: bounds the time of a step


class Retrieval:
    """Proposes a tree for every row whose last token is in the datastore."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn = frozenset({Drawn.FIXED})
    branches = True

    def __init__(self, store: Datastore, max_nodes: int, min_probability: float) -> None:
        self._store = store
        self._promises = Promises(weight=10)
        self._max_nodes = max_nodes
        self._min_probability = min_probability

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A tree for each row that decodes."""
        return [
            self._propose(slot, history, budget) if min(budget) > 0 else NOTHING
            for slot, history, budget in zip(view.slots, view.histories, budgets, strict=True)
        ]

    def _propose(self, slot: int, history: Sequence[int], budget: Budget) -> Tree:
        found = Continuations(history[: -LONGEST - 1 : -1])
        found.look_in(self._store.places, LOOKED_AT, 1.0)
        self._promises.expect(slot, history, found)
        nodes = min(self._max_nodes, budget.nodes)
        tokens, parents, confidences = found.tree(
            nodes, budget.depth, self._min_probability, self._promises.scales
        )
        return Tree(tokens, parents, confidences=confidences)

    def observe(self, step: Step) -> None:
        """The histories say all there is to know."""

    def release(self, slots: Sequence[int]) -> None:
        """Forget what was expected of these sequences."""
        for slot in slots:
            self._promises.release(slot)


def build(
    info: TargetInfo, *, path: str = "", max_nodes: int = 7, min_probability: float = MIN_PROBABILITY
) -> Retrieval:
    """Retrieval from a datastore.

    path             a file that `paceline datastore build` wrote, with this model's tokenizer; must be given
    max_nodes        drafted tokens per request and step at most
    min_probability  what the first drafted token's estimated probability must be; the i-th token needs
                     i times as much. A policy that knows what a token costs makes a better choice of
                     many: lower it then

    Raises ConfigError for a value out of range, TokenFileError for the file.
    """
    if not path:
        raise ConfigError("datastore:path must name a file that `paceline datastore build` wrote")
    if max_nodes < 1:
        raise ConfigError(f"datastore:max_nodes must be at least 1, got {max_nodes}")
    if not 0 < min_probability <= 1:
        raise ConfigError(f"datastore:min_probability must be above 0, up to 1, got {min_probability}")
    return Retrieval(Datastore.load(Path(path), info), max_nodes, min_probability)
