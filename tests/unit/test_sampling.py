"""SamplingParams refuses what it cannot honour; the warp does what its definition says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.sampling import Context, SamplingParams, log_law, warp

NAN, INF = math.nan, math.inf
BAD = {
    "temperature": [-0.1, 2.1, NAN, INF, 1e308, 1e-9, True, "1", None],
    "top_k": [-1, 1.5, True, "5", 2**31],
    "top_p": [0, -1, 1.1, NAN, True, "1"],
    "min_p": [-0.1, 2, NAN, True],
    "repetition_penalty": [0, -1, 11, NAN, INF, False],
    "presence_penalty": [-2.1, 2.1, NAN, True],
    "frequency_penalty": [-2.1, 2.1, NAN, "x"],
    "logit_bias": [[1], {-1: 1.0}, {1: 101}, {1: NAN}, {"a": 1}, {True: 1}, dict.fromkeys(range(1025), 1.0)],
    "min_tokens": [-1, 257, True, 1.0],
    "max_tokens": [0, -1, 1e12, 1.5, "5", True, 2**31],
    "stop": ["", [""], ["a"] * 5, ["x" * 1001], [1], 5, None],
    "stop_token_ids": [5, [-1], [1.5], [True], "12", ["1"]],
    "bad_words": [5, None, [""], [[]], [[-1]], [[1.5]], [5], ["x" * 1001], [[1] * 1001], ["a"] * 1025],
    "logprobs": [-1, 21, True, 1.5, "2"],
    "ignore_eos": [1, "yes", None],
    "logits_processor": [1, "x", [abs]],
    "seed": [-1, 2**63, 1.5, True, "x"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]], ids=repr)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{name: value})
    assert name.split("_token")[0].split("[")[0] in str(caught.value).replace("a stop string", "stop")
    assert "\n" not in str(caught.value)


def test_the_ends_of_every_range_are_allowed() -> None:
    SamplingParams(temperature=0, top_k=0, top_p=1e-9, min_p=1, repetition_penalty=10, presence_penalty=-2)
    SamplingParams(temperature=2, top_p=1, min_p=0, frequency_penalty=2, logit_bias={0: 100}, seed=2**63 - 1)
    SamplingParams(max_tokens=5, min_tokens=5, stop=["x" * 1000] * 4, seed=0)
    SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3))
    SamplingParams(bad_words=["x" * 1000, [1] * 1000] * 512, logprobs=0)
    SamplingParams(bad_words="one word", logprobs=20)


def test_one_stop_string_needs_no_list_and_lists_are_copied() -> None:
    stops, biases = ["a"], {1: 2}
    params = SamplingParams(stop=stops, logit_bias=biases)
    stops.append("b")
    biases[2] = 5
    assert (SamplingParams(stop="abc").stop, params.stop, params.logit_bias) == (("abc",), ("a",), {1: 2.0})


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    SamplingParams(stop_token_ids=[9], logit_bias={9: 1}).check_vocabulary(10)
    SamplingParams(bad_words=[[9, 9], "a"]).check_vocabulary(10)
    for params in (
        SamplingParams(stop_token_ids=[10]),
        SamplingParams(logit_bias={10: 1}),
        SamplingParams(bad_words=["a", [3, 10]]),
    ):
        with pytest.raises(ConfigError, match="token id 10; this model has 0 to 9"):
            params.check_vocabulary(10)


def by_hand(logits: list[float], params: SamplingParams, context: Context) -> list[float]:
    """Probabilities, token by token, from the definitions of the controls."""
    x = list(logits)
    for token in range(len(x)):
        if token in context.prompt or token in context.answer:
            x[token] *= params.repetition_penalty if x[token] <= 0 else 1 / params.repetition_penalty
        x[token] -= params.frequency_penalty * context.answer.count(token)
        x[token] -= params.presence_penalty * (token in context.answer)
        x[token] += params.logit_bias.get(token, 0)
        if token in context.ending and len(context.answer) < params.min_tokens:
            x[token] = -INF
        spoken = [*context.answer, token]
        if any(spoken[-len(word) :] == word for word in context.bad_words):
            x[token] = -INF
        if context.allowed is not None and not context.allowed[token]:
            x[token] = -INF
    order = sorted(range(len(x)), key=lambda token: (-x[token], token))
    if params.temperature == 0:
        return [float(token == order[0]) for token in range(len(x))]
    weight = [math.exp((value - x[order[0]]) / params.temperature) for value in x]
    kept = order[: params.top_k or len(x)]
    goal, reached, prefix = params.top_p * sum(weight[token] for token in kept), 0.0, []
    for token in kept:
        prefix.append(token)
        reached += weight[token]
        if params.top_p < 1 and reached >= goal - 1e-12:
            break
    final = [token for token in prefix if weight[token] >= params.min_p]
    total = sum(weight[token] for token in final)
    return [weight[token] / total if token in final else 0.0 for token in range(len(x))]


tokens = st.lists(st.integers(0, 7), max_size=8)


def on_all(check: Callable[..., None]) -> Callable[..., None]:
    """Run a check with NumPy and with a strict array library, which knows nothing of NumPy's own ways."""
    return pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])(check)


@on_all
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    logits=st.lists(st.integers(-24, 24).map(lambda n: n / 7), min_size=8, max_size=8),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 0.3, 1, 2]),
        top_k=st.integers(0, 9),
        top_p=st.sampled_from([0.05, 0.31, 0.77, 1]),
        min_p=st.sampled_from([0, 0.13, 1]),
        repetition_penalty=st.sampled_from([0.7, 1, 1.9]),
        presence_penalty=st.sampled_from([-1, 0, 0.6]),
        frequency_penalty=st.sampled_from([-0.4, 0, 1.1]),
        logit_bias=st.dictionaries(st.integers(0, 7), st.integers(-3, 3), max_size=3),
        min_tokens=st.integers(0, 6),
        bad_words=st.just(()),
        grammar=st.none(),
        stop=st.just(()),
        stop_token_ids=st.just(()),
    ),
    context=st.builds(
        Context,
        tokens,
        tokens,
        st.frozensets(st.integers(0, 6), max_size=3),
        st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=2), max_size=4),
        st.none() | st.sets(st.integers(0, 6)).map(lambda left_out: [t not in left_out for t in range(8)]),
    ),
)
def test_warp_agrees_with_the_definitions(
    xp: Any, logits: list[float], params: SamplingParams, context: Context
) -> None:
    allowed = None if context.allowed is None else xp.asarray(context.allowed)
    law = warp(xp.asarray(logits), params, context._replace(allowed=allowed))
    assert law.dtype == xp.float64
    np.testing.assert_allclose(np.exp(np.asarray(law)), by_hand(logits, params, context), atol=1e-9)


def test_equal_logits_keep_the_lower_ids() -> None:
    law = warp(np.zeros(6), SamplingParams(top_k=2), Context([0], [], frozenset()))
    assert np.exp(law).tolist() == pytest.approx([0.5, 0.5, 0, 0, 0, 0])
    law = warp(np.zeros(6), SamplingParams(top_p=0.5), Context([0], [], frozenset()))
    assert np.exp(law).tolist() == pytest.approx([1 / 3] * 3 + [0] * 3)


@pytest.mark.parametrize("setting", [{}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("shift", [-2000.0, 0.0, 2000.0])
def test_only_differences_of_logits_count_however_large_they_are(
    setting: dict[str, float], shift: float
) -> None:
    params = SamplingParams(**setting)
    logits = np.array([1.0, 0.5, 0.25, -3.0])
    expected = log_law(logits, params)
    assert np.exp(expected).sum() == pytest.approx(1)
    np.testing.assert_allclose(log_law(logits + shift, params), expected, atol=1e-9)


def test_warp_leaves_the_logits_alone() -> None:
    logits = np.arange(5.0)
    warp(logits, SamplingParams(logit_bias={1: 3}, min_p=0.5), Context([1], [2], frozenset({0})))
    assert logits.tolist() == [0, 1, 2, 3, 4]
