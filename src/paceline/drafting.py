"""How a drafter that samples makes its trees.

`grow` draws the tokens and writes down how, so that two properties hold by construction, without which a
rule that compares laws is not exact (docs/exactness.md):

- truthful: the law a token carries is the array it was drawn from;
- non-anticipating: whether a token is drawn is decided before it is drawn, from its own path alone, and
  a token that was drawn is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from paceline.core import Array, Budget, Drawn, Lane, Origin, Tree, View
from paceline.kernels import rank as fused_rank
from paceline.noise import Noise, largest
from paceline.sampling import log_law


class Prospect(NamedTuple):
    """All that may be known when it is decided whether tokens are drawn below a node.

    row          of the view
    path         drafted tokens from below the root down to the node; empty at the root
    probability  product of the confidences of the path's tokens, by default their probabilities when they
                 were drawn
    law          the law that the tokens below would be drawn from, over all tokens that can be
    """

    row: int
    path: tuple[int, ...]
    probability: float
    law: Array


class Subset(NamedTuple):
    """The tokens that a drafter can propose, where these are not all.

    ids         int64 [D]; the drafter's laws are over these
    vocab_size  V
    """

    ids: NDArray[np.int64]
    vocab_size: int

    def spread(self, values: Array, rest: float) -> Array:
        """Values [D] of its tokens as [V], with `rest` for the others."""
        xp = array_namespace(values)
        whole = xp.full(self.vocab_size, rest, dtype=values.dtype)
        whole[self.ids] = values
        return whole


Trust = Callable[[int, tuple[int, ...], Sequence[tuple[int, float]]], Sequence[float]]
"""From a row, a path and the tokens that were drawn behind it, with their probabilities, the foremost first,
to how sure they are."""

Paths = Sequence[tuple[int, tuple[int, ...]]]
"""(row, drafted tokens from below the root down) of the nodes whose law is wanted."""


def always(prospect: Prospect) -> bool:
    """Go on everywhere."""
    return True


def trusted(row: int, path: tuple[int, ...], drawn: Sequence[tuple[int, float]]) -> Sequence[float]:
    """The confidences of (token, probability) that were drawn behind a path: their probabilities."""
    return [probability for _, probability in drawn]


def grow(
    view: View,
    budgets: Sequence[Budget],
    laws: Callable[[Paths], Sequence[Array]],
    *,
    widths: Sequence[int],
    drawn: Drawn,
    least: float = 0.0,
    go_on: Callable[[Prospect], bool] = always,
    subset: Subset | None = None,
) -> list[Tree]:
    """A tree of drawn tokens for every row, level by level; a token's confidence is its probability.

    laws     the drafter's laws after some nodes: weights over all tokens, or `subset`, made probabilities
             here; where all are zero nothing is drawn
    widths   children of a node on each level; levels that a row's budget cannot hold whole are narrowed or
             left out before anything is drawn
    drawn    IID or WITHOUT_REPLACEMENT. Under a coupled rule (`view.coupled`) the children are those that
             the target's own noise ranks first, in either case: at temperature 0 the likeliest
    least    tokens are drawn below paths that are likelier than this
    go_on    decides whether tokens are drawn below such a node, from its law
    subset   the tokens that the laws are over; None: all
    """
    trees = [_Growing(view, row, drawn, subset) for row in range(len(budgets))]
    plans = [_plan(widths, budget) for budget in budgets]
    level = [(row, -1) for row in range(len(budgets)) if view.draws(row)]
    for depth in range(len(widths)):
        level = [
            (row, node) for row, node in level if depth < len(plans[row]) and trees[row].reached(node) > least
        ]
        if not level:
            break
        found = laws([(row, trees[row].path(node)) for row, node in level])
        below = []
        for (row, node), weights in zip(level, found, strict=True):
            law = _law(weights, view.coupled)
            tree = trees[row]
            if law is not None and go_on(Prospect(row, tree.path(node), tree.reached(node), law)):
                below += [(row, child) for child in tree.draw(node, law, plans[row][depth])]
        level = below
    return [tree.tree() for tree in trees]


def grow_likeliest(
    view: View,
    budgets: Sequence[Budget],
    laws: Callable[[Paths], Sequence[Array]],
    *,
    widths: Sequence[int],
    frontier: int,
    least: float = 0.0,
    go_on: Callable[[Prospect], bool] = always,
    trust: Trust = trusted,
    subset: Subset | None = None,
) -> list[Tree]:
    """As `grow` under a coupled rule, which lets tokens be left out for what they are: only the `frontier`
    likeliest nodes of each level have children, and of all the likeliest are proposed, as many as the budget
    holds. Likely is what `trust` makes of what was drawn, see `trusted`.

    Source: the expansion and reranking of Li et al., "EAGLE-2", 2024 (arXiv 2406.16858).
    """
    assert view.coupled
    trees = [_Growing(view, row, Drawn.COUPLED, subset) for row in range(len(budgets))]
    levels = [[-1] if view.draws(row) and budgets[row].nodes else [] for row in range(len(budgets))]
    for depth, width in enumerate(widths):
        wanted = [
            (row, node)
            for row, level in enumerate(levels)
            if depth < budgets[row].depth
            for node in sorted(level, key=trees[row].reached, reverse=True)[:frontier]
            if trees[row].reached(node) > least
        ]
        if not wanted:
            break
        levels = [[] for _ in budgets]
        found = laws([(row, trees[row].path(node)) for row, node in wanted])
        for (row, node), weights in zip(wanted, found, strict=True):
            law, tree = _law(weights, True), trees[row]
            if law is not None and go_on(Prospect(row, tree.path(node), tree.reached(node), law)):
                levels[row] += tree.draw(node, law, width, trust)
    return [tree.tree(budget.nodes) for tree, budget in zip(trees, budgets, strict=True)]


class _Growing:
    """One row's tree while it grows. Node -1 is the root."""

    def __init__(self, view: View, row: int, drawn: Drawn, subset: Subset | None) -> None:
        self._view, self._noise, self._row = view, Noise(view.seeds), row
        self._coupled, self._drawn, self._subset = view.coupled, drawn, subset
        self._first = len(view.histories[row])  # position of the first token this step may emit
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._origins: dict[int, Origin] = {}
        self._confidences: list[float] = []
        self._paths: list[tuple[int, ...]] = [()]  # the root's last, so that its number finds it
        self._reached = [1.0]

    def path(self, node: int) -> tuple[int, ...]:
        """The tokens from below the root down to a node."""
        return self._paths[node]

    def reached(self, node: int) -> float:
        """The product of their probabilities."""
        return self._reached[node]

    def draw(self, node: int, law: Array, width: int, trust: Trust = trusted) -> range:
        """Draw children of a node from a law: their nodes."""
        subset, first = self._subset, len(self._tokens)
        whole = law if subset is None or self._coupled else subset.spread(law, 0.0)
        origin = Origin(Drawn.COUPLED if self._coupled else self._drawn, whole)
        drawn = [
            (place if subset is None else int(subset.ids[place]), float(law[place]))
            for place in self._places(law, width, len(self._paths[node]))
        ]
        confidences = trust(self._row, self._paths[node], drawn)
        for (token, _), confidence in zip(drawn, confidences, strict=True):
            self._origins[len(self._tokens)] = origin
            self._tokens.append(token)
            self._parents.append(node)
            self._confidences.append(confidence)
            self._paths.insert(-1, (*self._paths[node], token))
            self._reached.insert(-1, self._reached[node] * confidence)
        return range(first, len(self._tokens))

    def _places(self, law: Array, width: int, depth: int) -> list[int]:
        """The places in the law of the tokens that are drawn."""
        noise, row, index = self._noise, self._row, len(self._tokens)
        if self._coupled:
            return foremost(self._view, row, depth, law, width, self._subset)
        ids = None if self._subset is None else self._subset.ids
        if self._drawn is Drawn.IID:
            return [noise.draft(row, self._first, index + i, law, 1, ids)[0] for i in range(width)]
        return noise.draft(row, self._first, index, law, width, ids)

    def tree(self, nodes: int | None = None) -> Tree:
        """All of it, or so many of its likeliest nodes: one is never likelier than its parent."""
        tree = Tree(self._tokens, self._parents, self._origins, self._confidences)
        if nodes is None:
            return tree
        likeliest = sorted(range(len(self._tokens)), key=self._reached.__getitem__, reverse=True)
        return tree.some(sorted(likeliest[:nodes]))


def foremost(
    view: View, row: int, depth: int, weights: Array, count: int, subset: Subset | None = None
) -> list[int]:
    """The children of a node under a coupled rule: the tokens that the target's own noise ranks first, at
    temperature 0 the likeliest, at most `count`.

    depth: drafted tokens on the path down to the node; weights: over all tokens or a subset, in which the
    places of the children are returned.
    """
    if view.controls[row].params.temperature == 0:
        return largest(weights, count)
    noise, position = Noise(view.seeds), len(view.histories[row]) + depth
    if subset is not None and fused_rank is not None and isinstance(weights, np.ndarray):
        key = noise.key(row, Lane.TARGET, position)
        places: list[int] = fused_rank(weights.astype(np.float64, copy=False), subset.ids, key, count)
        return places
    return noise.like_target(row, position, weights, count, None if subset is None else subset.ids)


def warped(view: View, row: int, path: Sequence[int], logits: Array, subset: Subset | None = None) -> Array:
    """What `grow` draws from where a drafter's logits, over all tokens or a subset, are like the target's:
    weights over the same under the request's own controls, evaluated along the drafted path; all zero where
    these leave no token.

    At temperature 0 under a coupled rule the runners-up keep the weights they have at temperature 1, for
    there the likeliest tokens are proposed without a draw.
    """
    controls = view.controls[row]
    if controls.adjusts:
        answered = len(view.histories[row]) + len(path) - view.prompts[row]
        if subset is None:
            logits = controls.attempt(logits, answered, path)
        else:
            logits = controls.attempt(subset.spread(logits, -math.inf), answered, path)[subset.ids]
    xp = array_namespace(logits)
    top = xp.max(logits)
    if top == -xp.inf:
        return xp.zeros_like(logits)
    if view.coupled and controls.params.temperature == 0:
        return xp.exp(logits - top)
    return xp.exp(log_law(logits, controls.params))


def _law(weights: Array, coupled: bool) -> Array | None:
    """Probabilities [V], in double precision where a rule computes with them; None if all weights are 0."""
    xp = array_namespace(weights)
    if not coupled:
        weights = xp.astype(weights, xp.float64)
    total = xp.sum(weights)
    return weights / total if total > 0 else None


def _plan(widths: Sequence[int], budget: Budget) -> list[int]:
    """Children of a node on each level, such that the full tree fits into the budget."""
    plan: list[int] = []
    nodes, level = 0, 1
    for width in widths[: budget.depth]:
        width = min(width, (budget.nodes - nodes) // level)
        if width < 1:
            break
        plan.append(width)
        level *= width
        nodes += level
    return plan
