"""k-SEQ: siblings drawn independently from one law are tried in turn, all by the same measure.

Each of k siblings is accepted with probability min(1, p / (rho q)). rho is as small as it may be, so that
what the accepted tokens add up to nowhere exceeds p; it lies between 1 and k. Applied level by level.
Source: SpecTr, Sun et al., 2023 (arXiv 2310.15141).
"""

from __future__ import annotations

from array_api_compat import array_namespace

from paceline.core import Array, Drawn, Promise
from paceline.errors import IncompatibleDrafter
from paceline.rules._residual import residual
from paceline.verify import Outcome, Row, rule

BISECTIONS = 20


@rule(Promise.LAW, takes=frozenset({Drawn.IID}))
def kseq(row: Row) -> Outcome:
    """Accept the first child that its coin lets through, and go on below it."""
    path: list[int] = []
    node, p = row.root, row.law(row.root)
    while children := row.children(node):
        q = _shared_law(row, children)
        rho = _rho(p, q, len(children))
        for child in children:
            x = row.token(child)
            if row.accepts(child, p[x], rho * q[x]):
                path.append(child)
                node, p = child, row.law(child)
                break
        else:
            return path, row.draw(_left(p, q, rho, len(children)))
    return path, row.draw(p)


def _shared_law(row: Row, siblings: list[int]) -> Array:
    """The law that all siblings were drawn from. Raises IncompatibleDrafter if there are several."""
    q, *others = [row.proposal(sibling) for sibling in siblings]
    xp = array_namespace(q)
    if not all(bool(xp.all(other == q)) for other in others):
        raise IncompatibleDrafter(
            "rule kseq takes siblings drawn independently from one law; "
            f"tokens {siblings[0]} to {siblings[-1]} of the draft were drawn from several"
        )
    return q


def _rate(p: Array, q: Array, rho: float) -> float:
    """Probability that one sibling is accepted, beta in the paper."""
    xp = array_namespace(p)
    return float(xp.sum(xp.minimum(q, p / rho)))


def _rho(p: Array, q: Array, k: int) -> float:
    """The smallest rho in [1, k] with 1 - (1 - beta)^k <= rho beta, by bisection from above: the left side
    falls with rho, the right side rises. A larger one is as exact, and accepts a little less."""
    low, high = 1.0, float(k)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        beta = _rate(p, q, middle)
        if 1.0 - (1.0 - beta) ** k <= middle * beta:
            high = middle
        else:
            low = middle
    return high


def _left(p: Array, q: Array, rho: float, k: int) -> Array:
    """The law of the token after k refusals: what the accepted ones leave of p."""
    xp = array_namespace(p)
    beta = _rate(p, q, rho)
    if beta == 0:
        return p
    return residual(p, xp.minimum(q, p / rho) * ((1.0 - (1.0 - beta) ** k) / beta))
