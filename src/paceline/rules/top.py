"""Relaxed acceptance: keep tokens that are among the target's likeliest. Lossy.

The walk follows the target's own draw, as `match` does. Where no child holds it, it takes the first child
that is one of the n likeliest tokens and hardly less likely than the likeliest. At temperature 0 there is
one possible token, and this is `match`.
Source: relaxed acceptance, "DeepSeek R1 MTP implementation and optimization", TensorRT-LLM's blog, 2025.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from paceline.core import Array, Drawn, Promise
from paceline.rules._options import ranges
from paceline.verify import Outcome, Row, rule


@rule(Promise.LOSSY, takes=frozenset(Drawn), check=ranges("top", n=(1, 1000), margin=(0, 1)))
def top(row: Row, *, n: int = 3, margin: float = 0.2) -> Outcome:
    """Follow the target's own draws, or else likely children.

    n       how many of the likeliest tokens pass, 1 to 1000
    margin  how much less probable than the likeliest token one may be, 0 to 1
    """
    path: list[int] = []
    node, drawn = row.root, row.own(row.root)
    while children := row.children(node):
        hits = [child for child in children if row.token(child) == drawn]
        p = row.law(node)
        hits += [child for child in children if _passes(p, row.token(child), n, margin)]
        if not hits:
            break
        node = hits[0]
        path.append(node)
        drawn = row.own(node)
    return path, drawn


def _passes(p: Array, token: int, n: int, margin: float) -> bool:
    """Whether the token is possible, one of the n likeliest, and within the margin of the likeliest."""
    xp = array_namespace(p)
    likelier = int(xp.sum(xp.astype(p > p[token], xp.int64)))
    return bool(p[token] > 0) and likelier < n and bool(p[token] >= xp.max(p) - margin)
