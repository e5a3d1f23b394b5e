"""Traversal verification: a tree is judged path by path, from the leaves upwards.

Each path is tried at its end first, and gives back what a refusal leaves to the node above, whose next
child is tried then. On a chain this is block verification; on a tree no node is judged before what is
below it. q is the law that the very child was drawn from, so children may be drawn independently, without
replacement, chosen, or all of these.
Source: Weng et al., "Traversal verification for speculative tree decoding", 2025 (arXiv 2505.12398).
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.core import Array, Promise
from paceline.rules._residual import capped, excess, regained
from paceline.verify import Outcome, Row, rule


@dataclass
class Stop:
    """A node on the path in hand.

    share    probability of accepting the path down to here, once no child is left to try
    law      what is left of the target's law after the node: float64 [V]
    untried  its children that were not tried yet, the next one last
    """

    node: int
    share: float
    law: Array
    untried: list[int]


@rule(Promise.LAW)
def traversal(row: Row) -> Outcome:
    """Go down first children, then accept at the end or take the path back by one."""
    path = [Stop(row.root, 1.0, row.law(row.root), row.children(row.root)[::-1])]
    while True:
        here = path[-1]
        if here.untried:
            child = here.untried.pop()
            x, q = row.token(child), row.proposal(child)
            share = capped(here.share * float(here.law[x]), float(q[x]))
            path.append(Stop(child, share, row.law(child), row.children(child)[::-1]))
        elif here.node == row.root or row.accepts(here.node, here.share, 1.0):
            return [stop.node for stop in path[1:]], row.draw(here.law)
        else:
            path.pop()
            above = path[-1]
            rest, mass = excess(above.share * above.law, row.proposal(here.node))
            above.share = regained(mass, above.share)
            above.law = rest / mass if mass > 0 else above.law
