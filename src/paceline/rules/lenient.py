"""Rejection with lenience: every token is accepted more readily. Lossy.

A token drawn from q is accepted with probability min(1, p / (lenience q)), so that no token becomes more
likely than p / lenience. A lenience of 1 is `rejection`.
Source: Leviathan, Kalman and Matias, 2023 (arXiv 2211.17192), appendix A.5.
"""

from __future__ import annotations

from paceline.core import Promise
from paceline.rules._options import ranges
from paceline.rules._residual import residual
from paceline.verify import Outcome, Row, rule


@rule(Promise.LOSSY, trees=False, check=ranges("lenient", lenience=(0, 1)))
def lenient(row: Row, *, lenience: float = 0.5) -> Outcome:
    """Go down the chain until a coin refuses.

    lenience  how much of a token's drafted probability the target must find in it, 0 to 1
    """
    path: list[int] = []
    p = row.law(row.root)
    for node in row.chain():
        x, q = row.token(node), row.proposal(node)
        if not row.accepts(node, p[x], lenience * q[x]):
            return path, row.draw(residual(p, q))
        path.append(node)
        p = row.law(node)
    return path, row.draw(p)
