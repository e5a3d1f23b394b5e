"""Recursive rejection sampling: try the children of a node one after the other.

Each child is accepted with probability min(1, p / q); a refused one leaves the residual (p - q)+ for the
next, and the last residual for the target. q is the law that this very child was drawn from, so one rule
serves children drawn independently (SpecInfer, Miao et al., 2023, arXiv 2305.09781), children drawn
without replacement (RSD, Jeon et al., 2024, arXiv 2402.14160), fixed lists, where q has one token (EAGLE-2,
Li et al., 2024, arXiv 2406.16858), and any mixture of them.
"""

from __future__ import annotations

from paceline.core import Promise
from paceline.rules._residual import residual
from paceline.verify import Outcome, Row, rule


@rule(Promise.LAW)
def recursive(row: Row) -> Outcome:
    """Accept the first child that its coin lets through, and go on below it."""
    path: list[int] = []
    node, p = row.root, row.law(row.root)
    while children := row.children(node):
        for child in children:
            x, q = row.token(child), row.proposal(child)
            if row.accepts(child, p[x], q[x]):
                path.append(child)
                node, p = child, row.law(child)
                break
            p = residual(p, q)
        else:
            break
    return path, row.draw(p)
