"""How a drafter that samples makes its trees.

`grow` draws the tokens and writes down how, so that two properties hold by construction, without which a
rule that compares laws is not exact (docs/exactness.md):

- truthful: the law a token carries is the array it was drawn from;
- non-anticipating: whether a token is drawn is decided before it is drawn, from its own path alone, and
  a token that was drawn is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from array_api_compat import array_namespace

from paceline.core import Array, Budget, Drawn, Origin, Tree, View
from paceline.noise import Noise


class Prospect(NamedTuple):
    """All that may be known when it is decided whether tokens are drawn below a node.

    row          of the view
    path         drafted tokens from below the root down to the node; empty at the root
    probability  product of the path's tokens' probabilities when they were drawn
    law          the law [V] that the tokens below would be drawn from
    """

    row: int
    path: tuple[int, ...]
    probability: float
    law: Array


Paths = Sequence[tuple[int, tuple[int, ...]]]
"""(row, drafted tokens from below the root down) of the nodes whose law is wanted."""


def always(prospect: Prospect) -> bool:
    """Go on everywhere."""
    return True


def grow(
    view: View,
    budgets: Sequence[Budget],
    laws: Callable[[Paths], Sequence[Array]],
    *,
    widths: Sequence[int],
    drawn: Drawn,
    go_on: Callable[[Prospect], bool] = always,
) -> list[Tree]:
    """A tree of drawn tokens for every row, level by level; a token's confidence is its probability.

    laws     the drafter's laws after some nodes: weights [V] each, made probabilities here
    widths   children of a node on each level; levels that a row's budget cannot hold whole are narrowed or
             left out before anything is drawn
    drawn    IID or WITHOUT_REPLACEMENT. Under a coupled rule (`view.coupled`) the children are those that
             the target's own noise ranks first, in either case
    go_on    decides whether tokens are drawn below a node
    """
    noise = Noise(view.seeds)
    tokens: list[list[int]] = [[] for _ in budgets]
    parents: list[list[int]] = [[] for _ in budgets]
    origins: list[dict[int, Origin]] = [{} for _ in budgets]
    confidences: list[list[float]] = [[] for _ in budgets]
    plans = [_plan(widths, budget) for budget in budgets]
    level: list[tuple[int, int, tuple[int, ...], float]]
    level = [(row, -1, (), 1.0) for row in range(len(budgets)) if view.draws(row)]
    for depth in range(len(widths)):
        level = [entry for entry in level if depth < len(plans[entry[0]])]
        if not level:
            break
        found = laws([(row, path) for row, _, path, _ in level])
        below = []
        for (row, node, path, probability), weights in zip(level, found, strict=True):
            law = _law(weights)
            if not go_on(Prospect(row, path, probability, law)):
                continue
            first = len(view.histories[row])  # position of the first token this step may emit
            width = plans[row][depth]
            if view.coupled:
                how, children = Drawn.COUPLED, noise.like_target(row, first + depth, law, width)
            elif drawn is Drawn.IID:
                place = len(tokens[row])
                how = drawn
                children = [noise.draft(row, first, place + i, law, 1)[0] for i in range(width)]
            else:
                how, children = drawn, noise.draft(row, first, len(tokens[row]), law, width)
            for token in children:
                child = len(tokens[row])
                tokens[row].append(token)
                parents[row].append(node)
                origins[row][child] = Origin(how, law)
                confidences[row].append(float(law[token]))
                below.append((row, child, (*path, token), probability * confidences[row][-1]))
        level = below
    return [Tree(*parts) for parts in zip(tokens, parents, origins, confidences, strict=True)]


def _law(weights: Array) -> Array:
    """Probabilities float64 [V]."""
    xp = array_namespace(weights)
    weights = xp.astype(weights, xp.float64)
    return weights / xp.sum(weights)


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
