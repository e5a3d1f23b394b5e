"""What a refused token leaves of the target's law."""

from __future__ import annotations

from array_api_compat import array_namespace

from paceline.core import Array


def excess(p: Array, q: Array) -> tuple[Array, float]:
    """(p - q)+, what p has more than q, float64 [V] and not normalised; and its mass."""
    xp = array_namespace(p)
    more = xp.clip(p - q, 0.0, None)
    return more, float(xp.sum(more))


def residual(p: Array, q: Array) -> Array:
    """norm((p - q)+): float64 [V]. Where nothing is left but rounding, p itself: then p and q are the
    same law, and a token of it is never refused but by rounding."""
    more, mass = excess(p, q)
    return more / mass if mass > 0 else p


def capped(p: float, q: float) -> float:
    """min(1, p / q), without a division where it is 1: q may be 0."""
    return p / q if p < q else 1.0


def regained(mass: float, share: float) -> float:
    """m / (m + 1 - A): the probability that sequences not yet refused end at a node, after one of its
    children was refused. mass: m, what the refusal left; share: A before it. 1 for 0 / 0."""
    return capped(mass, mass + (1.0 - share))
