"""Noise is what it says, and the fast laws along paths agree with the slow reference."""

from __future__ import annotations

import random

import numpy as np
import pytest

from paceline.core import Draft, Lane, Scores, Tree, View
from paceline.laws import Controls, Laws
from paceline.noise import Noise, bits, gumbel
from paceline.sampling import SamplingParams
from tests.chi_square import chi_square

MASK = 2**64 - 1
KEY = 17541442556454691068
GUMBEL = [0.6955078971364762, 0.7780993364510098]


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_bits_are_the_stream_of_splitmix64() -> None:
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # published for state 0
    assert bits(0, 3).tolist() == known
    key = Noise([7]).key(0, Lane.DRAFT, 123)
    assert bits(key, 50).tolist() == [mix((key + (t + 1) * 0x9E3779B97F4A7C15) & MASK) for t in range(50)]


def test_a_key_depends_on_seed_lane_and_position_only() -> None:
    noise = Noise([5, 6, 5])
    keys = {noise.key(row, lane, p) for row in (0, 1) for lane in Lane for p in range(100)}
    assert len(keys) == 2 * len(Lane) * 100
    assert noise.key(0, Lane.TARGET, 9) == noise.key(2, Lane.TARGET, 9) == Noise([5]).key(0, Lane(0), 9)
    assert all(0 <= key <= MASK for key in keys)


def test_keys_and_gumbel_noise_stay_as_they_are() -> None:
    """A change here changes every answer ever given for a seed."""
    assert Noise([42]).key(0, Lane.TARGET, 10) == KEY
    assert gumbel(KEY, 2).tolist() == pytest.approx(GUMBEL, rel=1e-12)


def test_the_largest_log_probability_plus_noise_is_a_draw_from_the_law() -> None:
    law = np.array([0.5, 0.25, 0.15, 0.1])
    noise = Noise([3])
    drawn = [int((np.log(law) + gumbel(noise.key(0, Lane(0), p), 4)).argmax()) for p in range(20_000)]
    assert chi_square(drawn, dict(enumerate(law))) > 1e-3
    assert chi_square(drawn, dict(enumerate([0.45, 0.3, 0.15, 0.1]))) < 1e-6


SETTINGS = (
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.4},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.9},
    {"repetition_penalty": 1.5, "presence_penalty": 0.7, "frequency_penalty": -0.3},
    {"frequency_penalty": 0.5, "logit_bias": {3: 2.5, 4: -3}},
    {"min_tokens": 6, "min_p": 0.1},
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_along_a_path_agree_with_the_reference_law(setting: dict[str, float], dtype: type) -> None:
    rng = random.Random(1)
    vocabulary = 20
    for seed in range(60):
        params = SamplingParams(seed=seed, **setting)
        prompt = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 400))]
        controls = Controls(params, {0, 1}, prompt)
        answer = [rng.randrange(vocabulary) for _ in range(rng.randint(0, 9))]
        controls.answered(answer)
        size = rng.randint(0, 6)
        tree = Tree(
            [rng.randrange(vocabulary) for _ in range(size)], [rng.randint(-1, n - 1) for n in range(size)]
        )
        text = prompt + answer
        view = View([0], [text], [len(text) - 1], [len(text)], [controls], [seed], [len(prompt)], ["d"])
        draft = Draft.pack(view, [tree])
        logits = np.random.default_rng(seed).normal(0, 3, (len(draft.scored), vocabulary)).astype(dtype)
        before = logits.copy()
        laws, noise = Laws(Scores(logits), draft, view), Noise(view.seeds)
        for node in draft.scored.tolist():
            key = noise.key(0, Lane.TARGET, int(draft.positions[node]) + 1)
            expected = int((laws.log_law(node) + gumbel(key, vocabulary)).argmax())
            assert laws.draw(node, noise) == expected
        assert (logits == before).all()


def test_a_node_that_was_not_scored_has_no_law() -> None:
    params = SamplingParams()
    view = View([0], [[1, 2, 3]], [0], [3], [Controls(params, (), [1, 2, 3])], [0], [3], ["d"])
    draft = Draft.pack(view, [Tree((), ())])
    with pytest.raises(KeyError):
        Laws(Scores(np.zeros((1, 4))), draft, view).draw(0, Noise([0]))
