"""The sequential test: how often it is wrong about an exact stream, and how soon right about a false one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.sequential_test import SHAPES, false_alarms, found_after
from paceline.audit.orders import NAMES
from paceline.audit.sequential import BINS, SequentialTest, log_e_values, smallest_caught

ALPHA = 1e-3


def by_hand(counts: np.ndarray) -> np.ndarray:
    """The Dirichlet-multinomial probability of the counts [..., K] over their probability in equal bins."""
    from scipy.special import gammaln

    bins, prior = counts.shape[-1], 150.0
    total = counts.sum(-1)
    mixture = gammaln(prior * bins) - gammaln(prior * bins + total)
    mixture += (gammaln(prior + counts) - gammaln(prior)).sum(-1)
    return np.exp(mixture + total * np.log(bins))


def test_the_e_values_are_ratios_of_two_probabilities_of_the_counts() -> None:
    counts = np.random.default_rng(0).multinomial(300, np.full(16, 1 / 16), size=(5, 4))
    shares, echoes = log_e_values(counts)
    merged = [counts.sum(1).reshape(5, bins, -1).sum(-1) for bins in BINS]
    assert np.allclose(np.exp(shares), np.mean([by_hand(part) for part in merged], axis=0))
    apart = [counts.reshape(5, 4, bins, -1).sum(-1) for bins in BINS]
    assert np.allclose(np.exp(echoes), np.mean([by_hand(part).prod(-1) for part in apart], axis=0))


def test_the_mean_of_the_e_value_is_one_whatever_the_number_of_tokens() -> None:
    rng = np.random.default_rng(1)
    for tokens in (20, 200):
        counts = rng.multinomial(tokens, np.full(64, 1 / 64), size=50_000).reshape(-1, 4, 16)
        for logs in log_e_values(counts):
            values = np.exp(logs)
            assert abs(values.mean() - 1) < 5 * values.std() / math.sqrt(len(values))


def test_false_alarms_are_rare_however_often_one_looks() -> None:
    assert false_alarms(runs=500, tokens=2000, look=50, alpha=0.05) <= 0.05


@pytest.mark.prove
def test_false_alarms_are_rarer_than_alpha_in_4000_streams_of_50000_tokens() -> None:
    assert false_alarms(runs=4000, tokens=50_000, look=250, alpha=ALPHA) <= ALPHA


@pytest.mark.parametrize("shape", SHAPES)
def test_a_total_variation_of_002_is_found_within_50000_tokens(shape: str) -> None:
    """The likeliest token, with about half of the mass, is the hardest: no test finds it in every run."""
    found = found_after(shape, 0.02, runs=200, tokens=50_000, look=2500, alpha=ALPHA) <= 50_000
    assert np.mean(found) >= (0.98 if shape == SHAPES[0] else 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_total_variation_of_005_is_found_within_6000_tokens(shape: str) -> None:
    found = found_after(shape, 0.05, runs=200, tokens=6000, look=250, alpha=ALPHA)
    assert np.mean(found <= 6000) > 0.95


@pytest.mark.parametrize("tokens", [2000, 10_000, 50_000])
def test_what_would_have_been_caught_is_caught_in_95_of_100_runs(tokens: int) -> None:
    caught = smallest_caught(tokens, ALPHA, len(NAMES))
    assert caught is not None
    found = found_after("halves", caught, runs=500, tokens=tokens, look=tokens, alpha=ALPHA)
    assert 0.9 < np.mean(found <= tokens) < 0.995


def test_too_few_tokens_catch_nothing() -> None:
    assert smallest_caught(5, ALPHA, len(NAMES)) is None
    assert smallest_caught(0, ALPHA, len(NAMES)) is None


def test_an_impossible_token_fails_at_once_and_for_good() -> None:
    test = SequentialTest(NAMES, ALPHA, seed=0)
    test.add(np.zeros(len(NAMES)), 0.0)
    assert test.look()
    assert (test.impossible, test.log_e) == (1, math.inf)
    test.add(np.zeros(len(NAMES)), 1.0)
    assert test.look()


def test_a_stream_that_was_found_false_once_stays_false() -> None:
    test = SequentialTest(("only",), ALPHA, seed=0)
    rng = np.random.default_rng(0)
    for _ in range(300):
        test.add(np.array([0.0]), 0.5)
    assert test.look()
    for place in rng.random(30_000):
        test.add(np.array([place]), 1e-9)
    test.look()
    assert test.log_e < -math.log(ALPHA)
    assert test.failed
    assert set(test.by_order) == {"only", "only, echo", "repeats"}


def test_certain_tokens_fall_evenly_into_the_bins() -> None:
    test = SequentialTest(("only",), ALPHA, seed=3)
    for _ in range(20_000):
        test.add(np.array([0.0]), 1.0)
    assert not test.look()


def coins(rng: np.random.Generator, count: int, shared: int) -> list[tuple[float, float]]:
    """(law's mass before, own mass) of tokens of a fair coin that is thrown once for `shared` tokens."""
    sides = np.repeat(rng.random(count // shared) < 0.5, shared)
    return [(0.0, 0.5) if side else (0.5, 0.5) for side in sides]


@pytest.mark.parametrize(("shared", "caught"), [(1, False), (2, True)])
def test_tokens_that_hang_together_are_caught_though_each_has_its_law(shared: int, caught: bool) -> None:
    test = SequentialTest(("only",), ALPHA, seed=0)
    stream = coins(np.random.default_rng(5), 4000, shared)
    for start in range(0, len(stream), 20):
        test.begin()
        for below, width in stream[start : start + 20]:
            test.add(np.array([below]), width)
    assert test.look() is caught
    assert test.by_order["only"] < 2


def test_answers_that_come_again_are_caught_by_their_chance() -> None:
    test = SequentialTest(("only",), ALPHA, seed=0)
    for _ in range(1000):
        test.pair(False, math.log(0.01))
    assert not test.look()
    assert test.by_order["repeats"] > -0.31, "bets that are never won cost half of the purse at most"
    test = SequentialTest(("only",), ALPHA, seed=0)
    test.pair(True, math.log(1e-6))
    assert test.look()
