"""Log-probabilities are the model's own, and reach the user cut like the tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paceline.drafters.none import Plain
from paceline.engine import Engine
from paceline.logprobs import logprobs
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.toys import VOCABULARY, Letters, Oracle


def test_they_are_the_log_softmax_of_the_raw_logits() -> None:
    logits = np.array([1.0, 3.0, 2.0, 3.0, -50.0], np.float32)
    total = sum(math.exp(value) for value in logits.tolist())
    found = logprobs(logits, 2, 3)
    assert (found.token_id, found.logprob) == (2, pytest.approx(2 - math.log(total), abs=1e-12))
    assert [other.token_id for other in found.top] == [1, 3, 2]  # of equal ones the lower id first
    assert [other.logprob for other in found.top] == pytest.approx(
        [x - math.log(total) for x in (3, 3, 2)], abs=1e-12
    )
    assert logprobs(logits, 0, 0).top == ()
    assert [other.token_id for other in logprobs(logits, 0, 20).top] == [1, 3, 2, 0, 4]
    assert logprobs(logits, 1, 5).top == logprobs(logits, 1, 20).top
    assert logits.tolist() == [1, 3, 2, 3, -50]


def test_ties_at_the_last_place_go_to_the_lowest_ids() -> None:
    assert [other.token_id for other in logprobs(np.zeros(50), 7, 4).top] == [0, 1, 2, 3]


CONTROLS = {"temperature": 0.3, "top_k": 3, "repetition_penalty": 1.5, "logit_bias": {4: 5.0}, "logprobs": 2}


@pytest.mark.parametrize("speculating", [False, True])
def test_events_and_completion_hold_one_entry_per_token_before_all_controls(speculating: bool) -> None:
    target = TableTarget(VOCABULARY)
    params = SamplingParams(seed=5, max_tokens=20, ignore_eos=True, **CONTROLS)
    known = Engine(target, {"d": Plain()}, drafter="d", tokenizer=Letters()).generate([1, 2], params)[0]
    drafter = Oracle({5: known.token_ids}) if speculating else Plain()
    engine = Engine(target, {"d": drafter}, drafter="d", tokenizer=Letters())
    for stop in ((), (known.text[6:8],)):
        events = list(
            engine.stream([1, 2], SamplingParams(**{**CONTROLS, "seed": 5, "max_tokens": 20,
                                                    "ignore_eos": True, "stop": stop}))
        )  # fmt: skip
        done = events[-1].finish
        assert (done.stats.accepted > 0) == speculating
        assert sum((event.logprobs for event in events), ()) == done.logprobs
        assert [entry.token_id for entry in done.logprobs] == list(done.token_ids)
        assert (len(done.token_ids) < 20) == bool(stop)
        text = [1, 2, *done.token_ids]
        for place, entry in enumerate(done.logprobs):
            row = target.table[text[place], text[place + 1]]
            assert entry.logprob == pytest.approx(row[entry.token_id] - np.log(np.exp(row).sum()), abs=1e-12)
            assert [other.token_id for other in entry.top] == np.argsort(-row)[:2].tolist()


def test_without_asking_there_are_none_and_a_cancelled_request_keeps_its_own() -> None:
    engine = Engine(TableTarget(VOCABULARY), {"d": Plain()}, drafter="d")
    assert engine.generate([1], SamplingParams(seed=1, max_tokens=3))[0].logprobs is None
    request = engine.submit([1], SamplingParams(seed=1, logprobs=0, ignore_eos=True))
    first = engine.step()
    engine.cancel(request)
    (last,) = engine.step()
    assert last.logprobs == ()
    assert last.finish.logprobs == first[0].logprobs
    engine.cancel(engine.submit([1], SamplingParams()))
    assert engine.step()[0].logprobs is None
