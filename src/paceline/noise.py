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

Of several answers to one prompt, each has a seed of its own (`choice_seed`):

    seed of answer 0     = the request's seed
    seed of answer i > 0 = mix((mix((mix(seed + G) ^ CHOICES) + G) ^ i) + G) >> 1
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from paceline.core import Array, Lane

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
MASK = 2**64 - 1
CHOICES = 0xFF
STREAMS = 0xFE
"""Where a lane stands in a key: no lane has these numbers."""

Tokens = NDArray[np.int64] | None
"""Of weights: the ids of the tokens that they speak of; None: of all, in order."""


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

    def accepts(self, row: int, position: int, index: int, p: float, q: float) -> bool:
        """True with probability min(1, p / q): the coin of one drafted token.

        position: of the first token that the step may emit; coins of different steps are then independent
        even where they are thrown for the same place. index: tells apart the coins of one step.
        """
        z = _mix(self.key(row, Lane.ACCEPT, position) + (index + 1) * GOLDEN)
        return ((z >> 12) + 0.5) * 2.0**-52 * q < p

    def choose(self, row: int, position: int, weights: Array) -> int:
        """A token drawn in proportion to the weights [V], which need not sum to 1: one draw per step.

        position: as for `accepts`.
        """
        return _ranked(weights, self.key(row, Lane.RESIDUAL, position), 1)[0]

    def draft(
        self, row: int, position: int, index: int, weights: Array, count: int, tokens: Tokens = None
    ) -> list[int]:
        """Up to `count` different tokens drawn in proportion to the weights [V], without replacement, in
        the order of the draws (Gumbel-top-k; Kool, van Hoof and Welling, 2019, arXiv 1903.06059).

        position: as for `accepts`; index: tells apart the draws of one step; tokens: what the weights speak
        of. Returns their places in the weights.
        """
        key = _mix(self.key(row, Lane.DRAFT, position) + (index + 1) * GOLDEN)
        return _ranked(weights, key, count, tokens)

    def like_target(
        self, row: int, position: int, weights: Array, count: int, tokens: Tokens = None
    ) -> list[int]:
        """The token that the target would draw at an absolute position if this were its law, and the
        runners-up: at most `count` different ones, by their places in the weights. tokens: what these speak
        of."""
        return _ranked(weights, self.key(row, Lane.TARGET, position), count, tokens)


def _ranked(weights: Array, key: int, count: int, tokens: Tokens = None) -> list[int]:
    """The places of the possible tokens that come first by log weight plus noise."""
    xp = array_namespace(weights)
    possible = weights > 0
    x = xp.where(possible, xp.log(xp.where(possible, weights, 1.0)), -xp.inf)
    noise = gumbel(key, x.shape[0] if tokens is None else tokens)
    return largest(x + xp.asarray(noise, dtype=x.dtype, device=device(x)), count)


def largest(x: Array, count: int) -> list[int]:
    """The tokens with the largest values [V], at most `count`, of equal ones the lowest id first; none whose
    value is -inf."""
    xp = array_namespace(x)
    if count == 1:
        return [int(xp.argmax(x))]
    x, tokens = xp.asarray(x, copy=True), []
    for _ in range(min(count, x.shape[0])):
        token = int(xp.argmax(x))
        if x[token] == -xp.inf:
            break
        tokens.append(token)
        x[token] = -xp.inf
    return tokens


def choice_seed(seed: int, index: int) -> int:
    """The seed, 0 to 2^63 - 1, of one of several answers to one prompt; the first has the seed itself."""
    return seed if index == 0 else _derived(seed, CHOICES, index)


def stream_seed(seed: int, index: int) -> int:
    """The seed, 0 to 2^63 - 1, with which one of several drafters draws for a request; the first has the
    request's own."""
    return seed if index == 0 else _derived(seed, STREAMS, index)


def _derived(seed: int, purpose: int, index: int) -> int:
    key = _mix((_mix(seed + GOLDEN) ^ purpose) + GOLDEN)
    return _mix((key ^ index) + GOLDEN) >> 1


def _mix(z: int) -> int:
    z &= MASK
    z = (z ^ z >> 30) * FIRST & MASK
    z = (z ^ z >> 27) * SECOND & MASK
    return z ^ z >> 31


def bits(key: int, tokens: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """The random bits of token ids [N], or of those from 0 to N - 1, under one key: uint64 [N]."""
    if isinstance(tokens, int):
        z = _steps(tokens) + np.uint64(key)
    else:
        z = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN) + np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= np.uint64(FIRST)
    z ^= z >> np.uint64(27)
    z *= np.uint64(SECOND)
    z ^= z >> np.uint64(31)
    return z


def gumbel(key: int, tokens: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel noise of token ids [N], or of those from 0 to N - 1, under one key: float64 [N].

    The token with the largest log-probability plus noise is a draw from the law (the Gumbel-max trick).
    """
    z = bits(key, tokens)
    z >>= np.uint64(12)
    u = z.astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    np.log(u, out=u)
    np.negative(u, out=u)
    np.log(u, out=u)
    return np.negative(u, out=u)


def gumbel_rows(keys: Sequence[int], like: Array) -> Array:
    """`gumbel` under many keys at a time, float64 [keys, V], in the array library and on the device of `like`
    [keys, V]. In signed integers, which every library multiplies modulo 2^64."""
    xp = array_namespace(like)
    steps = xp.arange(1, like.shape[1] + 1, dtype=xp.int64, device=device(like)) * _signed(GOLDEN)
    z = xp.asarray([_signed(key) for key in keys], dtype=xp.int64, device=device(like))[:, None] + steps
    for shift, factor in ((30, FIRST), (27, SECOND)):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    z = _shifted(z ^ _shifted(z, 31), 12)
    return -xp.log(-xp.log((xp.astype(z, xp.float64) + 0.5) * 2.0**-52))


def _shifted(z: Array, count: int) -> Array:
    """An unsigned shift to the right of signed integers."""
    return (z >> count) & ((1 << 64 - count) - 1)


def _signed(z: int) -> int:
    """The same 64 bits as a signed integer."""
    return z - (1 << 64) if z >> 63 else z


@lru_cache(maxsize=4)
def _steps(count: int) -> NDArray[np.uint64]:
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    steps.flags.writeable = False
    return steps
