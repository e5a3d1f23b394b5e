"""Keep drafted tokens while they are the ones that the target draws itself.

At every node the target draws its own token, with noise keyed by the request's seed and the position, and
the walk follows the child that holds it. What is emitted is therefore what plain decoding would have
emitted, token for token, whatever was drafted, at any temperature and for any tree.
Source: drafter-invariant decoding by a shared Gumbel race, Daliri, Musco and Suresh, 2024 (arXiv 2408.07978).
"""

from __future__ import annotations

from paceline.core import Drawn, Promise
from paceline.verify import Outcome, Row, rule


@rule(Promise.TOKENS, takes=frozenset(Drawn))
def match(row: Row) -> Outcome:
    """Follow the target's own draws down the tree; of equal siblings the first counts."""
    path: list[int] = []
    node, drawn = row.root, row.own(row.root)
    while hit := [child for child in row.children(node) if row.token(child) == drawn]:
        node = hit[0]
        path.append(node)
        drawn = row.own(node)
    return path, drawn
