"""Block verification: a chain is judged as a whole, from its end.

Where `rejection` stops at the first refusal, here a token that is too likely may be made up for by later
ones that are too unlikely, so that never fewer tokens are accepted in the mean.
Source: Sun et al., "Block verification accelerates speculative decoding", 2024 (arXiv 2403.10444).
Its coins are independent of one another, so the longest accepted prefix is found from the end upwards.
"""

from __future__ import annotations

from paceline.core import Promise
from paceline.rules._residual import capped, excess, regained
from paceline.verify import Outcome, Row, rule


@rule(Promise.LAW, trees=False)
def block(row: Row) -> Outcome:
    """Accept the longest prefix of the chain that its coin lets through."""
    chain = row.chain()
    p = [row.law(node) for node in (row.root, *chain)]
    q = [row.proposal(node) for node in chain]
    joint = [1.0]  # of the first i tokens: how likely they are under the target, over the drafter, capped
    for node, p_above, q_above in zip(chain, p, q, strict=False):
        x = row.token(node)
        joint.append(capped(joint[-1] * float(p_above[x]), float(q_above[x])))
    if not chain or row.accepts(chain[-1], joint[-1], 1.0):
        return chain, row.draw(p[-1])
    i = len(chain) - 1
    rest, mass = excess(joint[i] * p[i], q[i])
    while i > 0 and not row.accepts(chain[i - 1], regained(mass, joint[i]), 1.0):
        i -= 1
        rest, mass = excess(joint[i] * p[i], q[i])
    return chain[:i], row.draw(rest if mass > 0 else p[i])
