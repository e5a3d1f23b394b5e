"""Whether tokens come from the laws they should come from: a test that may be looked at after every token.

Every token becomes a number that is uniform between 0 and 1 if the token was drawn from its law, whatever
that law was: the randomised probability integral transform. The tokens are put into some order that was
fixed before this token was drawn; with F the law's mass before the token and p its own, the number is
F + v p, v uniform. It falls into one of K equal bins, and the counts of the bins are tested against 1/K.

The test is a Dirichlet-multinomial e-process (Lindon and Malek, "Anytime-valid inference for multinomial
count data", NeurIPS 2022): the ratio of the counts' probability, if the bins' shares had been drawn from a
Dirichlet distribution around 1/K, to their probability under 1/K. Under exactness its mean is 1 at all
times, so by Ville's inequality it ever reaches 1/alpha with probability alpha at most, however often one
looks and whenever one stops. The mean of several such processes is one again, whatever their dependence: so
several orders of the tokens, and several K, are tried at once and none costs more than a factor.

Tokens may each have the right law on average and still hang together, as when one coin is thrown for all
drafts of a step. So the counts are kept once more, apart by a moving average of the answer's earlier numbers:
each part is a stream of its own whose next number is uniform, and the product of their e-values is one more
e-value, the one that is called `echo`. And where one request was answered twice with different seeds, the
chance p of the same answer is known: a bet on it pays 1 / p, and its winnings are an e-value, `repeats`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BINS = (2, 4, 8, 16)
"""Numbers of bins that are tried; the counts are kept for the last and added up for the others."""

PRIOR = 150.0
"""Concentration of the Dirichlet distribution, per bin. Chosen by experiment: docs/log.md."""

MEMORY = 0.75
QUARTILES = (-0.29, 0.0, 0.29)
"""The moving average is sum(MEMORY^k (u - 1/2)); these cut its values, under exactness, into four parts."""

ONE_SIDED_95 = 1.645


def log_e_values(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the e-values of the shares and of the echo, each the mean over BINS: float64 [...].

    counts: int64 [..., 4, 16], how many tokens fell into each of 16 equal bins, apart by the moving average.
    """
    together = counts.sum(-2)
    shares = [_one(together.reshape(*together.shape[:-1], k, -1).sum(-1)) for k in BINS]
    echoes = [_one(counts.reshape(*counts.shape[:-1], k, -1).sum(-1)).sum(-1) for k in BINS]
    return log_mean(np.stack(shares)), log_mean(np.stack(echoes))


def _one(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithm of the e-value of counts [..., K] in K equal bins: float64 [...]."""
    bins, total = counts.shape[-1], counts.sum(-1)
    most = 1 << int(total.max(initial=1)).bit_length()
    inside = _log_rising(PRIOR, most)[counts].sum(-1)
    result: NDArray[np.float64] = inside - _log_rising(PRIOR * bins, most)[total] + total * math.log(bins)
    return result


@lru_cache(maxsize=16)
def _log_rising(start: float, most: int) -> NDArray[np.float64]:
    """log(start (start + 1) ... (start + n - 1)) = lgamma(start + n) - lgamma(start), for n = 0 to most."""
    return np.concatenate(([0.0], np.cumsum(np.log(start + np.arange(most)))))


def log_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log of the mean of exp(values) over the first axis."""
    largest = values.max(0)
    result: NDArray[np.float64] = largest + np.log(np.exp(values - largest).mean(0))
    return result


class SequentialTest:
    """One test of a stream of tokens, under several orders at once.

    orders  names of the orders; every `add` brings a place under each
    alpha   how often a true stream may be called false, whenever one stops looking
    seed    of the uniform numbers v: Philox, NumPy's counter-based generator, which the engine does not use
    """

    def __init__(self, orders: tuple[str, ...], alpha: float, seed: int) -> None:
        self.orders = orders
        self.alpha = alpha
        self.tokens = 0
        self.impossible = 0
        self.log_e = 0.0
        self.largest_log_e = 0.0
        self.curve: list[tuple[int, float]] = [(0, 0.0)]
        self._counts = np.zeros((len(orders), len(QUARTILES) + 1, BINS[-1]), np.int64)
        self._rows = np.arange(len(orders))
        self._average = np.zeros(len(orders))
        self._pairs = 0
        self._log_repeats = 0.0
        self._uniform = np.random.Generator(np.random.Philox(key=seed))

    def begin(self) -> None:
        """The next token starts an answer."""
        self._average[:] = 0.0

    def pair(self, same: bool, log_chance: float) -> None:
        """Two answers to one request with different seeds. log_chance: of the first one coming again.

        The stakes shrink so fast that all of them together cost half of the purse at most.
        """
        self._pairs += 1
        stake = 1 / (self._pairs + 1) ** 2
        lost = math.log1p(-stake)
        won = math.log(stake) - log_chance
        self._log_repeats += float(np.logaddexp(lost, won)) if same else lost

    def add(self, below: NDArray[np.float64], width: float) -> None:
        """Count a token. below: the law's mass before it under each order [orders]; width: its own mass.

        A token without mass was impossible, and the test has failed for good.
        """
        self.tokens += 1
        if not width > 0:
            self.impossible += 1
            return
        place = below + self._uniform.random(len(below)) * width
        bins = np.clip((place * BINS[-1]).astype(np.int64), 0, BINS[-1] - 1)
        self._counts[self._rows, np.searchsorted(QUARTILES, self._average), bins] += 1
        self._average *= MEMORY
        self._average += place - 0.5

    def look(self) -> bool:
        """Work out the e-value of all tokens so far; true if the stream is now known to be false."""
        values = np.append(np.stack(log_e_values(self._counts)).ravel(), self._log_repeats)
        self.log_e = math.inf if self.impossible else float(log_mean(values))
        self.largest_log_e = max(self.largest_log_e, self.log_e)
        self.curve.append((self.tokens, self.log_e))
        return self.failed

    @property
    def failed(self) -> bool:
        """Whether any look found the e-value at 1 / alpha or above."""
        return self.largest_log_e >= -math.log(self.alpha)

    @property
    def by_order(self) -> dict[str, float]:
        """log10 of the e-values alone: the shares' and the echo's under each order, and the repeats'."""
        shares, echoes = (values / math.log(10) for values in log_e_values(self._counts))
        names = (*self.orders, *(f"{name}, echo" for name in self.orders), "repeats")
        values = (*shares.tolist(), *echoes.tolist(), self._log_repeats / math.log(10))
        return dict(zip(names, values, strict=True))


def smallest_caught(tokens: int, alpha: float, orders: int) -> float | None:
    """The total variation between the bins' shares and 1/K that a test over so many tokens would have found
    in 95 of 100 runs; None if it would have found none.

    Worked out for the shape that is hardest to find for its total variation: one half of the unit interval
    is more likely than the other by the same factor everywhere, and one order alone shows it. Expected
    counts give the mean of the log e-value, the normal approximation of the likelihood ratio its spread.
    """
    halves = np.repeat((1.0, -1.0), BINS[-1] // 2)

    def margin(distance: float) -> float:
        shares = (1 + 2 * distance * halves) / BINS[-1]
        counts = np.round(shares * tokens).astype(np.int64)
        spread = ONE_SIDED_95 * 2 * distance * math.sqrt(tokens)
        found = log_mean(np.stack([_one(counts.reshape(k, -1).sum(-1)) for k in BINS]))
        return float(found) - spread - math.log((2 * orders + 1) / alpha)

    low, high = 0.0, 0.5
    if margin(high) < 0:
        return None
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if margin(middle) >= 0 else (middle, high)
    return high
