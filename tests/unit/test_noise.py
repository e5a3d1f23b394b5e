"""Noise follows its laws, is the same in every library, and no two draws of a request know of each other.

Everything is a pure function of the seed, so these tests cannot fail by chance twice; bounds are such that
they would by chance once in a million.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import array_api_strict as strict
import numpy as np
import pytest
from scipy.stats import chi2, kstest

from paceline.core import Lane
from paceline.noise import GOLDEN, MASK, Noise, bits, gumbel

COUNT = 20_000
RARE = 1e-6
LAW = np.array([0.45, 0.25, 0.0, 0.15, 0.1, 0.05])


def uniforms(coin: Callable[[int], Callable[[float], bool]], count: int = 4000) -> np.ndarray:
    """The uniform numbers behind `count` coins, found by halving: float64 [count]."""
    found = []
    for number in range(count):
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if coin(number)(middle) else (middle, high)
        found.append((low + high) / 2)
    return np.array(found)


COINS: dict[str, Callable[[int], Callable[[float], bool]]] = {
    "seeds": lambda number: lambda p: Noise([number]).accepts(0, 7, 3, p, 1.0),
    "positions": lambda number: lambda p: Noise([5]).accepts(0, number, 3, p, 1.0),
    "indices": lambda number: lambda p: Noise([5]).accepts(0, 7, number, p, 1.0),
}


@pytest.mark.parametrize("name", COINS)
def test_a_coins_number_is_uniform(name: str) -> None:
    found = uniforms(COINS[name])
    assert kstest(found, "uniform").pvalue > RARE
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / math.sqrt(len(found))


def test_a_coin_accepts_with_probability_p_over_q() -> None:
    for p, q in ((0.1, 0.4), (0.3, 0.5), (2.0, 2.5), (1e-300, 3e-300)):
        heads = sum(Noise([seed]).accepts(0, 3, 1, p, q) for seed in range(COUNT))
        spread = math.sqrt(COUNT * p / q * (1 - p / q))
        assert abs(heads - COUNT * p / q) < 5 * spread
    for seed in range(200):
        assert Noise([seed]).accepts(0, 3, 1, 0.5, 0.5)
        assert Noise([seed]).accepts(0, 3, 1, 0.5, 0.1)
        assert Noise([seed]).accepts(0, 3, 1, 1e-9, 0.0)
        assert not Noise([seed]).accepts(0, 3, 1, 0.0, 0.5)
        assert not Noise([seed]).accepts(0, 3, 1, 0.0, 0.0)


def pearson(tokens: list[int], law: np.ndarray) -> float:
    """p-value of the tokens under the law, none of them impossible."""
    counts = np.bincount(tokens, minlength=len(law))
    assert not counts[law == 0].any()
    mean = law[law > 0] * len(tokens)
    return float(chi2.sf(((counts[law > 0] - mean) ** 2 / mean).sum(), len(mean) - 1))


DRAWS: dict[str, Callable[[int], int]] = {
    "choose, by seed": lambda n: Noise([n]).choose(0, 9, LAW),
    "choose, by position": lambda n: Noise([4]).choose(0, n, LAW),
    "choose, weights that do not sum to 1": lambda n: Noise([n]).choose(0, 2, LAW * 17),
    "draft, by seed": lambda n: Noise([n]).draft(0, 9, 2, LAW, 1)[0],
    "draft, by index": lambda n: Noise([4]).draft(0, 9, n, LAW, 1)[0],
    "draft, first of three": lambda n: Noise([n]).draft(0, 9, 2, LAW, 3)[0],
    "like the target": lambda n: Noise([n]).like_target(0, 9, LAW, 2)[0],
    "in single precision": lambda n: Noise([n]).choose(0, 9, LAW.astype(np.float32)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_tokens_are_drawn_in_proportion_to_their_weights(name: str) -> None:
    assert pearson([DRAWS[name](number) for number in range(COUNT)], LAW) > RARE


def test_a_draw_with_another_law_is_caught() -> None:
    tokens = [Noise([n]).choose(0, 9, LAW) for n in range(COUNT)]
    assert pearson(tokens, np.array([0.43, 0.27, 0.0, 0.15, 0.1, 0.05])) < RARE


def test_several_tokens_come_without_replacement_in_the_order_of_their_draws() -> None:
    law = np.array([0.5, 0.3, 0.2, 0.0])
    pairs = [tuple(Noise([n]).draft(0, 3, 1, law, 2)) for n in range(COUNT)]
    expected = {(a, b): law[a] * law[b] / (1 - law[a]) for a, b in itertools.permutations(range(3), 2)}
    mean = np.array(list(expected.values())) * COUNT
    counts = np.array([pairs.count(pair) for pair in expected])
    assert counts.sum() == COUNT
    assert chi2.sf(((counts - mean) ** 2 / mean).sum(), len(mean) - 1) > RARE


def test_no_more_tokens_come_than_are_possible() -> None:
    assert sorted(Noise([1]).draft(0, 3, 1, LAW, 6)) == [0, 1, 3, 4, 5]
    assert Noise([1]).draft(0, 3, 1, np.eye(4)[2], 3) == [2]


STREAMS: dict[str, Callable[[int], int]] = {
    "target": lambda n: Noise([n]).like_target(0, 5, LAW, 1)[0],
    "target, next position": lambda n: Noise([n]).like_target(0, 6, LAW, 1)[0],
    "residual": lambda n: Noise([n]).choose(0, 5, LAW),
    "residual of the next step": lambda n: Noise([n]).choose(0, 6, LAW),
    "draft": lambda n: Noise([n]).draft(0, 5, 0, LAW, 1)[0],
    "draft, next index": lambda n: Noise([n]).draft(0, 5, 1, LAW, 1)[0],
    "draft of the next step": lambda n: Noise([n]).draft(0, 6, 0, LAW, 1)[0],
    "coin": lambda n: sum(Noise([n]).accepts(0, 5, 1, p, 1.0) for p in (0.2, 0.4, 0.6, 0.8)),
    "next coin": lambda n: sum(Noise([n]).accepts(0, 5, 2, p, 1.0) for p in (0.2, 0.4, 0.6, 0.8)),
    "coin of the next step": lambda n: sum(Noise([n]).accepts(0, 6, 1, p, 1.0) for p in (0.2, 0.4, 0.6, 0.8)),
    "target of the next seed": lambda n: Noise([n + 1]).like_target(0, 5, LAW, 1)[0],
}


@cache
def stream(name: str) -> list[int]:
    return [STREAMS[name](n) for n in range(5000)]


def dependence(one: list[int], other: list[int]) -> float:
    """p-value of a contingency table under independence."""
    table = np.zeros((max(one) + 1, max(other) + 1))
    np.add.at(table, (one, other), 1)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    mean = np.outer(table.sum(1), table.sum(0)) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(chi2.sf(((table - mean) ** 2 / mean).sum(), freedom))


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(STREAMS, 2)))
def test_lanes_positions_and_indices_know_nothing_of_each_other(one: str, other: str) -> None:
    assert dependence(stream(one), stream(other)) > RARE


def test_streams_that_share_their_noise_are_caught() -> None:
    biased = [Noise([n]).like_target(0, 5, LAW[::-1].copy(), 1)[0] for n in range(5000)]
    assert dependence(stream("target"), biased) < RARE


def test_all_lanes_and_positions_have_keys_of_their_own() -> None:
    noise = Noise([0, 1, 2**63 - 1])
    keys = {noise.key(row, lane, place) for row in range(3) for lane in Lane for place in range(50)}
    assert len(keys) == 3 * len(Lane) * 50


def test_every_array_library_draws_the_same() -> None:
    for seed in range(50):
        noise, law = Noise([seed]), strict.asarray(LAW)
        assert noise.choose(0, 3, law) == noise.choose(0, 3, LAW)
        assert noise.draft(0, 3, 1, law, 4) == noise.draft(0, 3, 1, LAW, 4)
        assert noise.like_target(0, 3, law, 3) == noise.like_target(0, 3, LAW, 3)


def test_bits_and_gumbel_noise_are_what_the_page_says() -> None:
    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        return z ^ z >> 31

    key = Noise([77]).key(0, Lane.RESIDUAL, 12)
    assert key == mix((mix((mix(77 + GOLDEN & MASK) ^ 2) + GOLDEN & MASK) ^ 12) + GOLDEN & MASK)
    expected = [mix(key + (token + 1) * GOLDEN & MASK) for token in range(5)]
    assert bits(key, 5).tolist() == expected
    u = [((z >> 12) + 0.5) * 2.0**-52 for z in expected]
    assert gumbel(key, 5) == pytest.approx([-math.log(-math.log(x)) for x in u])
    assert Noise([77]).accepts(0, 12, 0, 0.5, 1.0) == (coin_number(77, 12, 0) < 0.5)


def coin_number(seed: int, position: int, index: int) -> float:
    key = Noise([seed]).key(0, Lane.ACCEPT, position)
    return ((int(bits(key, index + 1)[index]) >> 12) + 0.5) * 2.0**-52
