"""How a drafter that runs a model makes its trees.

The model never keeps a drafted token: each pass runs over the tree so far, below the last token that is
committed. A pass over a few tokens costs about as much as one over a single token, there is no cache to roll
back, and what was committed stays as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from paceline.core import Array, Budget, Draft, Drafter, Step, Tree, View
from paceline.drafters._acceptance import Siblings
from paceline.drafters._options import Growth
from paceline.drafting import Paths, Prospect, Subset, grow, grow_likeliest, warped

Path = tuple[int, ...]


class Scorer(Protocol):
    """A model that says what may follow drafted paths."""

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """How deep a tree of so many nodes may be below this history; 0: there is no place for it."""
        ...

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits after each path, [V] or over the drafter's subset of tokens, valid until the next call. Rows
        are numbered as in `slots`; where a history is not that of an earlier call with the same slot, it goes
        on from there."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """These sequences ended. One that was never seen is no error."""
        ...


class ModelDrafter:
    """Draws trees from what a model says, under the request's own controls.

    guesser  a drafter that drafts for the model: what it proposes is scored along with the first level, and
             levels that it guessed need no pass of their own
    subset   the tokens that the model can propose; None: all
    """

    needs: frozenset[str] = frozenset()
    whole = False

    def __init__(
        self,
        scorer: Scorer,
        growth: Growth,
        guesser: Drafter | None = None,
        subset: Subset | None = None,
    ) -> None:
        self.drawn = frozenset({growth.drawn})
        self.branches = max(growth.widths) > 1
        self._scorer = scorer
        self._growth = growth
        self._siblings = Siblings(growth.widths)
        self._guesser = guesser
        self._subset = subset

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A drawn tree for each row that decodes and has room."""
        budgets = [
            self._within_room(slot, history, budget)
            for slot, history, budget in zip(view.slots, view.histories, budgets, strict=True)
        ]
        guesses, growth = self._guesses(view, budgets), self._growth
        ahead: dict[tuple[int, Path], Array] = {}  # logits behind what was guessed

        def laws(paths: Paths) -> list[Array]:
            wanted = list(dict.fromkeys([*(entry for entry in paths if entry not in ahead), *guesses]))
            found = self._scorer.score(view.slots, view.histories, wanted) if wanted else []
            scored = ahead | dict(zip(wanted, found, strict=True))
            ahead.update((entry, np.array(scored[entry])) for entry in guesses)
            guesses.clear()
            return [warped(view, row, path, scored[row, path], self._subset) for row, path in paths]

        def may_follow(row: int, path: Path) -> bool:
            return not (path and path[-1] in view.controls[row].ending) and self._trusts(view, row, path)

        def go_on(prospect: Prospect) -> bool:
            row, path, probability, law = prospect
            return probability * float(law.max()) > growth.min_probability and may_follow(row, path)

        how: dict[str, Any] = {
            "widths": growth.widths,
            "least": growth.min_probability,
            "subset": self._subset,
        }
        if not (growth.frontier and view.coupled):
            return grow(view, budgets, laws, drawn=growth.drawn, go_on=go_on, **how)
        self._siblings.release(view.slots)

        def trust(row: int, path: Path, drawn: Sequence[tuple[int, float]]) -> list[float]:
            found = self._siblings.add(view.slots[row], self._place(view, row, path), drawn)
            estimates = self._siblings.estimates(view.controls[row].params.temperature == 0, len(path))
            return [estimates[rank][share] for rank, (_, share) in enumerate(found)]

        return grow_likeliest(
            view,
            budgets,
            laws,
            frontier=growth.frontier,
            go_on=lambda prospect: may_follow(prospect.row, prospect.path),
            trust=trust,
            **how,
        )

    def _trusts(self, view: View, row: int, path: Path) -> bool:
        """Whether tokens are drafted below a path, for all that is known before they are drawn; by default
        they are."""
        return True

    def _place(self, view: View, row: int, path: Path) -> Hashable:
        """What the tokens that may follow a path hang on; by default all of it."""
        return path

    def _within_room(self, slot: int, history: Sequence[int], budget: Budget) -> Budget:
        nodes, depth = budget.nodes, min(budget.depth, len(self._growth.widths))
        if min(nodes, depth) < 1:
            return Budget(0, 0)
        scored = max(nodes, self._growth.frontier * len(self._growth.widths))
        return Budget(nodes, min(depth, self._scorer.room(slot, history, scored)))

    def _guesses(self, view: View, budgets: Sequence[Budget]) -> list[tuple[int, Path]]:
        """What the guesser proposes: (row, path)."""
        if self._guesser is None:
            return []
        guesses: list[tuple[int, Path]] = []
        levels = [Budget(budget.nodes, max(0, budget.depth - 1)) for budget in budgets]
        for row, tree in enumerate(self._guesser.propose(view, levels)):
            paths: list[Path] = []
            for token, parent in zip(tree.tokens, tree.parents, strict=True):
                paths.append((*(paths[parent] if parent >= 0 else ()), token))
            guesses += [(row, path) for path in paths[: levels[row].nodes] if len(path) <= levels[row].depth]
        return guesses

    def observe(self, step: Step) -> None:
        """Learn which drafted tokens came true; else the histories say all there is to know."""
        self._siblings.learn(step, partial(self._place, step.view))
        if self._guesser is not None:
            self._guesser.observe(step)

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._scorer.release(slots)
        self._siblings.release(slots)
        if self._guesser is not None:
            self._guesser.release(slots)


class Room:
    """Who has how much of a drafting model's cache, by whole pages."""

    def __init__(self, cache_tokens: int, page_tokens: int) -> None:
        self._cache_tokens = cache_tokens
        self._page_tokens = page_tokens
        self._held: dict[int, int] = {}

    def hold(self, slot: int, tokens: int) -> bool:
        """Set aside so many tokens for a sequence, unless it has them; whether there was room."""
        needed = -(-tokens // self._page_tokens) * self._page_tokens
        others = sum(held for other, held in self._held.items() if other != slot)
        if others + needed > self._cache_tokens:
            return False
        self._held[slot] = max(needed, self._held.get(slot, 0))
        return True

    def release(self, slots: Sequence[int]) -> None:
        """These sequences ended."""
        for slot in slots:
            self._held.pop(slot, None)


def hang(
    slots: Sequence[int],
    fresh: Mapping[int, tuple[int, Sequence[int]]],
    paths: Paths,
    known: int,
) -> tuple[Draft, list[int]]:
    """The draft of a pass that scores some paths, and the place of each in its scored nodes.

    fresh   {row: (tokens in the cache, the tokens behind those)}, of the rows that take part, ascending
    known   1: each row's last token is its root; 0: it is drafted too, below the one before it, so that
            what is committed of the pass goes up to there
    """
    rows = {row: place for place, row in enumerate(fresh)}
    trees: list[dict[Path, int]] = [{} for _ in rows]
    for row, path in paths:
        tree, top = trees[rows[row]], () if known else (fresh[row][1][-1],)
        for length in range(1 - len(top), len(path) + 1):
            tree.setdefault((*top, *path[:length]), len(tree))
    offsets, tokens, parents, positions, roots = [0], list[int](), list[int](), list[int](), list[int]()
    for (start, text), tree in zip(fresh.values(), trees, strict=True):
        count = len(text) - (not known)
        first, root = len(tokens), len(tokens) + count - 1
        tokens += text[:count]
        parents += (-1, *range(first, root))
        positions += range(start, start + count)
        for path in tree:
            above = root + 1 + tree[path[:-1]] if len(path) > 1 else root
            tokens.append(path[-1])
            parents.append(above)
            positions.append(positions[above] + 1)
        roots.append(root)
        offsets.append(len(tokens))
    nodes = []
    for row, path in paths:
        path = path if known else (fresh[row][1][-1], *path)
        nodes.append(roots[rows[row]] + (trees[rows[row]][path] + 1 if path else 0))
    scored = {node: place for place, node in enumerate(sorted(set(nodes)))}
    draft = Draft(
        np.array([slots[row] for row in rows], np.int32),
        np.array(offsets, np.int32),
        np.array([start for start, _ in fresh.values()], np.int32),
        np.array(tokens, np.int32),
        np.array(parents, np.int32),
        np.array(positions, np.int32),
        roots,
        np.array(list(scored), np.int32),
    )
    return draft, [scored[node] for node in nodes]
