"""Typical acceptance: keep what the target finds likely enough. Lossy.

A token is accepted if its probability exceeds min(epsilon, delta exp(-H)), where H is the entropy of the
target's law: the less certain the target, the more passes. Of the paths whose tokens all pass, the longest
is kept, of equally long ones the likeliest; the token after it is the target's own. At temperature 0
nothing but the likeliest token passes.
Source: Medusa, Cai et al., 2024 (arXiv 2401.10774); the defaults are those of its code.
"""

from __future__ import annotations

from math import exp, log

from array_api_compat import array_namespace

from paceline.core import Array, Drawn, Promise
from paceline.rules._options import ranges
from paceline.verify import Outcome, Row, rule


@rule(Promise.LOSSY, takes=frozenset(Drawn), check=ranges("typical", epsilon=(0, 1), delta=(0, 1)))
def typical(row: Row, *, epsilon: float = 0.3, delta: float = 0.09) -> Outcome:
    """Keep the longest path of likely tokens.

    epsilon  a token as likely as this always passes, 0 to 1
    delta    and so does one as likely as this, where the target is certain; 0 to 1
    """
    best: tuple[int, float, list[int]] = (0, 0.0, [])
    reached: list[tuple[float, list[int]]] = [(0.0, [])]
    while reached:
        likelihood, path = reached.pop()
        if (len(path), likelihood) > best[:2]:
            best = (len(path), likelihood, path)
        node = path[-1] if path else row.root
        if children := row.children(node):
            p = row.law(node)
            threshold = min(epsilon, delta * exp(-_entropy(p)))
            for child in reversed(children):
                if (probability := float(p[row.token(child)])) > threshold:
                    reached.append((likelihood + log(probability), [*path, child]))
    path = best[2]
    return path, row.own(path[-1] if path else row.root)


def _entropy(p: Array) -> float:
    xp = array_namespace(p)
    return -float(xp.sum(p * xp.log(xp.where(p > 0, p, 1.0))))
