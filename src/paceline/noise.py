"""Counter-based noise: every random number is a pure function of what it is for.

A draw is keyed by the request's seed, the lane, the absolute position of the token that is drawn and the
token id. So it is the same in any batch, in any order, with any drafter: a request draws the same token
at a position whether that position was drafted or not.

All arithmetic is modulo 2^64, with G = 0x9E3779B97F4A7C15 and `mix` the finaliser of SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014):

    mix(z):  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
             z = (z ^ z >> 27) * 0x94D049BB133111EB
             z =  z ^ z >> 31
    key    = mix((mix((mix(seed + G) ^ lane) + G) ^ position) + G)
    bits t = mix(key + (t + 1) * G)                     for token id t
    u      = ((bits >> 12) + 0.5) * 2^-52               exact in float64, never 0 or 1
    gumbel = -log(-log(u))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from paceline.core import Lane

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
MASK = 2**64 - 1


class Noise:
    """The noise of the rows of one step. seeds: uint64 as int, one per row."""

    __slots__ = ("_seeds",)

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds

    def key(self, row: int, lane: Lane, position: int) -> int:
        """The uint64 from which all draws at one position of one row follow."""
        key = _mix(self._seeds[row] + GOLDEN)
        key = _mix((key ^ lane) + GOLDEN)
        return _mix((key ^ position) + GOLDEN)


def _mix(z: int) -> int:
    z &= MASK
    z = (z ^ z >> 30) * FIRST & MASK
    z = (z ^ z >> 27) * SECOND & MASK
    return z ^ z >> 31


def bits(key: int, count: int) -> NDArray[np.uint64]:
    """The random bits of the token ids 0 to count - 1 under one key: uint64 [count]."""
    z = _steps(count) + np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= np.uint64(FIRST)
    z ^= z >> np.uint64(27)
    z *= np.uint64(SECOND)
    z ^= z >> np.uint64(31)
    return z


def gumbel(key: int, count: int) -> NDArray[np.float64]:
    """Standard Gumbel noise of the token ids 0 to count - 1 under one key: float64 [count].

    The token with the largest log-probability plus noise is a draw from the law (the Gumbel-max trick).
    """
    z = bits(key, count)
    z >>= np.uint64(12)
    u = z.astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    np.log(u, out=u)
    np.negative(u, out=u)
    np.log(u, out=u)
    return np.negative(u, out=u)


@lru_cache(maxsize=4)
def _steps(count: int) -> NDArray[np.uint64]:
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    steps.flags.writeable = False
    return steps
