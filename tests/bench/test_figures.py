"""What is made of times, and what may be said of them."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.bench.figures import _accepted_at_least, bootstrap_interval, speed_up, verdict


def test_the_bootstrap_interval_holds_the_median_and_repeats() -> None:
    values = np.random.default_rng(1).normal(1.5, 0.2, 200)
    low, high = bootstrap_interval(values)
    assert low < np.median(values) < high
    assert high - low < 0.12
    assert (low, high) == bootstrap_interval(values)


@pytest.mark.parametrize(
    ("low", "high", "count", "words"),
    [
        (1.01, 1.5, 5, "faster"),
        (1.01, 1.5, 4, "too few"),
        (1.0, 1.5, 50, "not shown"),
        (0.9, 1.1, 50, "not shown"),
        (0.9, 1.0, 50, "not shown"),
        (0.8, 0.99, 50, "slower"),
    ],
)
def test_no_speed_up_is_claimed_whose_interval_includes_1(
    low: float, high: float, count: int, words: str
) -> None:
    assert verdict(low, high, count) == words


def test_tau_is_one_and_the_shares_of_passes_that_kept_so_many() -> None:
    kept = _accepted_at_least([{0: 5, 2: 3}, {1: 2}], 10)
    assert kept == [0.5, 0.3]
    assert _accepted_at_least([{0: 4}], 4) == []


def test_noise_alone_is_no_speed_up_but_a_real_one_is() -> None:
    random = np.random.default_rng(2)
    plain = random.uniform(1, 3, 40)
    noise = random.lognormal(0, 0.1, 40)
    assert speed_up(plain.tolist(), (plain * noise).tolist())["verdict"] == "not shown"
    assert speed_up(plain.tolist(), (plain * noise / 1.3).tolist())["verdict"] == "faster"
    assert speed_up(plain.tolist(), (plain * noise * 1.3).tolist())["verdict"] == "slower"
