"""Logits that stay on the device: the same answers, one read a step. A CPU stands in for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline import device, rules
from paceline.core import Promise
from paceline.device import OnDevice, draw_all
from paceline.drafters import load
from paceline.engine import Engine
from paceline.sampling import SamplingParams
from paceline.targets.torch import TorchTarget
from tests.torch.families import model, small
from tests.torch.test_target import words
from tests.unit.test_device import PARAMS, on_the_host

SETTINGS = [
    SamplingParams(temperature=0, max_tokens=16),
    SamplingParams(temperature=1.2, top_k=9, top_p=0.9, max_tokens=16, seed=3),
    SamplingParams(temperature=1, min_p=0.05, frequency_penalty=0.5, max_tokens=16, seed=4, logprobs=2),
]
PROMPTS = [words(length, length) * 2 for length in (4, 7, 9)]


def test_tokens_are_those_that_the_host_draws() -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        logits = rng.normal(0, 3, (len(PARAMS), 300)).astype(np.float32)
        keys = rng.integers(0, 2**64, len(PARAMS), np.uint64).tolist()
        tokens, _ = draw_all(torch.from_numpy(logits), PARAMS, keys)
        assert tokens == [on_the_host(*row) for row in zip(logits, PARAMS, keys, strict=True)]


def answers(target: TorchTarget, rule: str, drafter: str) -> list[Any]:
    made = Engine(target, {drafter: load(drafter, target.info)}, drafter=drafter, rule=rules.load(rule))
    done = made.generate(PROMPTS, SETTINGS)
    assert drafter == "none" or sum(one.stats.drafted for one in done) > 0
    return [(one.token_ids, one.logprobs) for one in done]


@pytest.fixture
def staying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchTarget, "_given", lambda target, logits: OnDevice(logits))


@pytest.mark.parametrize(
    ("rule", "drafter"),
    [("match", "none"), ("match", "recycling:min_probability=1e-6"), ("block", "markov:widths=1x1")],
)
def test_answers_are_the_same(rule: str, drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TorchTarget(model("qwen3"), rows=8)
    expected = answers(target, rule, drafter)
    monkeypatch.setattr(TorchTarget, "_given", lambda target, logits: OnDevice(logits))
    assert answers(target, rule, drafter) == expected


def test_the_host_reads_once_in_a_step(staying: None, monkeypatch: pytest.MonkeyPatch) -> None:
    target, reads = TorchTarget(model("qwen3")), []
    read = device._on_host

    def counted(values: Any) -> Any:
        reads.append(values.shape)
        return read(values)

    monkeypatch.setattr(device, "_on_host", counted)
    made = Engine(target, {"ngram": load("ngram", target.info)}, drafter="ngram", eos_ids=frozenset())
    for prompt, params in zip(PROMPTS, SETTINGS[:2] * 2, strict=False):
        made.submit(prompt, params)
    steps = 0
    while not made.idle:
        made.step()
        steps += 1
    assert len(reads) == steps
    assert max(shape[1] for shape in reads) <= 3 * 17  # tokens, not logits


def test_logits_that_are_not_finite_end_their_own_answer(staying: None) -> None:
    of = small("llama")
    target = TorchTarget(of)
    of.lm_head.register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor(7), torch.nan))
    made = Engine(target, {"none": load("none", target.info)}, drafter="none")
    (done,) = made.generate([PROMPTS[0]], SETTINGS[0])
    assert done.finish_reason == "error"
    assert "not finite" in str(done.stop_reason)
    assert done.promise == Promise.TIES.value
