"""Rejection of one token after the other: the classic rule for chains.

A token drawn from q is accepted with probability min(1, p / q); the first one refused is replaced by a draw
from the residual (p - q)+. No rule accepts a single token more often.
Source: Leviathan, Kalman and Matias, 2023 (arXiv 2211.17192); Chen et al., 2023 (arXiv 2302.01318).
"""

from __future__ import annotations

from paceline.core import Promise
from paceline.rules._residual import residual
from paceline.verify import Outcome, Row, rule


@rule(Promise.LAW, trees=False)
def rejection(row: Row) -> Outcome:
    """Go down the chain until a coin refuses."""
    path: list[int] = []
    p = row.law(row.root)
    for node in row.chain():
        x, q = row.token(node), row.proposal(node)
        if not row.accepts(node, p[x], q[x]):
            return path, row.draw(residual(p, q))
        path.append(node)
        p = row.law(node)
    return path, row.draw(p)
