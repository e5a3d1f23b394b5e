"""The fused draw finds the token that the slow reference finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline import kernels
from paceline.core import Lane
from paceline.noise import Noise, gumbel
from paceline.sampling import SamplingParams, truncate

assert kernels.compiled is not None, "these tests need the compiled kernels"
draw, rank = kernels.compiled.draw, kernels.compiled.rank


def reference(logits: np.ndarray, params: SamplingParams, key: int) -> int:
    return int((truncate(logits, params) + gumbel(key, len(logits))).argmax())


@pytest.mark.parametrize("isa", kernels.compiled.available())
@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 15, 16, 17, 100, 1000, 49152]),
    spread=st.sampled_from([0.0, 0.1, 2.0, 8.0]),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 3000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    rounded=st.booleans(),
    masked=st.booleans(),
)
def test_it_draws_the_references_token(
    isa: str,
    seed: int,
    size: int,
    spread: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    rounded: bool,
    masked: bool,
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(size) * spread).astype(np.float32)
    if rounded:  # many ties
        logits = np.round(logits * 2) / 2
    if masked:
        logits[rng.random(size) < 0.3] = -np.inf
        logits[rng.integers(size)] = 1.0
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for key in rng.integers(0, 2**63, 5).tolist():
        found = draw(logits, temperature, top_k, top_p, min_p, key, isa)
        assert found == reference(logits, params, key)


@pytest.mark.parametrize("isa", kernels.compiled.available())
def test_temperature_zero_takes_the_first_of_the_largest(isa: str) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 5, 16, 33, 1000):
        logits = rng.integers(0, 4, size).astype(np.float32)
        assert draw(logits, 0.0, 0, 1.0, 0.0, 1, isa) == logits.argmax()


@pytest.mark.parametrize("isa", kernels.compiled.available())
def test_a_nucleus_decided_by_the_last_bits_is_the_references(isa: str) -> None:
    """Two tokens hold all but 2e-9 of the mass, and half of it is asked for: the second one is needed."""
    logits = np.array([1.0, 2.5, 2.5, -1.0, 1.0, 1.5, -3.5, 0.0] * 4, np.float32)
    logits[8:] -= 10
    params = SamplingParams(temperature=0.05, top_p=0.5)
    keys = range(100)
    found = [draw(logits, 0.05, 0, 0.5, 0.0, key, isa) for key in keys]
    assert found == [reference(logits, params, key) for key in keys]
    assert set(found) == {1, 2}


def test_different_keys_draw_different_tokens() -> None:
    """The comparison above would pass if both sides ignored the noise."""
    logits = np.zeros(1000, np.float32)
    assert len({draw(logits, 1.0, 0, 1.0, 0.0, key) for key in range(200)}) > 150


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_ranks_equal_the_slow_ones(spread: float) -> None:
    """Where candidates lie close together, and where most cannot catch up."""
    rng = np.random.default_rng(5)
    moved = 0
    for case in range(200):
        size = int(rng.choice([1, 2, 40, 2048]))
        ids = np.sort(rng.permutation(49152)[:size]).astype(np.int64)
        weights = np.exp(spread * rng.standard_normal(size))
        weights[rng.random(size) < 0.1] = 0
        noise = Noise([case])
        count = int(rng.choice([1, 3, 64]))
        wanted = noise.like_target(0, case, weights, count, ids)
        if not weights.any():
            wanted = []
        assert rank(weights, ids, noise.key(0, Lane.TARGET, case), count) == wanted
        moved += wanted[:1] != [int(weights.argmax())]
    assert moved > 20 or spread > 3, "noise changes who is first"
