"""Drawing where the logits are: the tokens that the host draws, and no more reads than needed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from paceline.device import OnDevice, draw_all
from paceline.noise import gumbel, gumbel_rows
from paceline.sampling import SamplingParams, truncate

KEYS = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]
PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=1),
    SamplingParams(temperature=0.7, top_k=5),
    SamplingParams(temperature=1.3, top_p=0.8),
    SamplingParams(temperature=2, top_k=20, top_p=0.5),
    SamplingParams(temperature=1.1, min_p=0.2),
]


def on_the_host(logits: np.ndarray, params: SamplingParams, key: int) -> int:
    if params.temperature == 0:
        return int(logits.argmax())
    return int((truncate(logits, params) + gumbel(key, len(logits))).argmax())


def test_the_noise_of_many_keys_is_that_of_each() -> None:
    together = gumbel_rows(KEYS, np.empty((len(KEYS), 1000)))
    for row, key in zip(together, KEYS, strict=True):
        assert_allclose(row, gumbel(key, 1000), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tokens_are_those_that_the_host_draws(dtype: type) -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        logits = rng.normal(0, 3, (len(PARAMS), 300)).astype(dtype)
        keys = rng.integers(0, 2**64, len(PARAMS), np.uint64).tolist()
        tokens, sound = draw_all(logits, PARAMS, keys)
        assert all(sound)
        assert tokens == [on_the_host(*row) for row in zip(logits, PARAMS, keys, strict=True)]


def test_other_keys_draw_other_tokens() -> None:
    logits = np.zeros((50, 1000))
    tokens, _ = draw_all(logits, [PARAMS[1]] * 50, list(range(50)))
    assert len(set(tokens)) > 40


def test_rows_that_are_not_finite_are_told_apart() -> None:
    logits = np.zeros((4, 9), np.float32)
    logits[1, 3], logits[2, 4], logits[3] = np.nan, np.inf, -np.inf
    assert draw_all(logits, [PARAMS[1]] * 4, [1, 2, 3, 4])[1] == [True, False, False, False]
    assert draw_all(logits, [PARAMS[0]] * 4, [1, 2, 3, 4])[1] == [True, False, False, False]


def test_a_row_comes_to_the_host_and_several_stay_until_numpy_wants_them() -> None:
    values = np.arange(12.0).reshape(4, 3)
    there = OnDevice(values)
    assert len(there) == 4
    for index in (2, np.int64(1)):
        assert type(there[index]) is np.ndarray
        assert_array_equal(there[index], values[index])
    for several in (slice(1, 3), [3, 0], np.array([1, 1])):
        assert type(there[several]) is OnDevice
        assert_array_equal(np.array(there[several]), values[several])
    assert_array_equal(np.array(there), values)
