"""What a refused token leaves of the target's law."""

from __future__ import annotations

from array_api_compat import array_namespace

from paceline.core import Array


def residual(p: Array, q: Array) -> Array:
    """norm((p - q)+): float64 [V]. Where nothing is left but rounding, p itself: then p and q are the
    same law, and a token of it is never refused but by rounding."""
    xp = array_namespace(p)
    rest = xp.clip(p - q, 0.0, None)
    mass = xp.sum(rest)
    return rest / mass if mass > 0 else p
