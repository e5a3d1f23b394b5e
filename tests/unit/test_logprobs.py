"""Log-probabilities are the model's own, and reach the user cut like the tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paceline.drafters.none import Plain
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.logprobs import logprobs
from paceline.results import Completion
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


PROMPT = [1 + place % 11 for place in range(50)]


def told(engine: Engine, **fields: object) -> Completion:
    fields = {"seed": 3, "max_tokens": 2, "ignore_eos": True, "prompt_logprobs": 2, **fields}
    return engine.generate(PROMPT, SamplingParams(**fields))[0]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 33, 200])
def test_log_probabilities_of_a_prompt_are_those_of_its_tokens_whatever_the_chunks(chunk_tokens: int) -> None:
    target = TableTarget(VOCABULARY)
    engine = Engine(target, {"d": Plain()}, drafter="d", chunk_tokens=chunk_tokens)
    engine.generate(PROMPT, SamplingParams(max_tokens=1))  # its pages are there to be found
    done = told(engine)
    first, *rest = done.prompt_logprobs
    assert first is None
    assert [entry.token_id for entry in rest] == PROMPT[1:]
    for place, entry in enumerate(rest):
        row = target.table[PROMPT[place - 1] if place else 0, PROMPT[place]]
        assert entry == logprobs(row, PROMPT[place + 1], 2)
    plain = told(Engine(target, {"d": Plain()}, drafter="d"), prompt_logprobs=None)
    assert plain.prompt_logprobs is None
    assert done.token_ids == plain.token_ids


def test_log_probabilities_of_a_prompt_cost_few_rows_of_logits_at_a_time() -> None:
    rows: list[int] = []

    class Counting(TableTarget):
        def forward(self, draft, taps):
            rows.append(len(draft.scored))
            return super().forward(draft, taps)

    told(Engine(Counting(VOCABULARY), {"d": Plain()}, drafter="d", chunk_tokens=500))
    assert rows[:2] == [32, 18]


def test_log_probabilities_of_a_prompt_survive_preemptions() -> None:
    expected = told(Engine(TableTarget(VOCABULARY), {"d": Plain()}, drafter="d"), max_tokens=9)
    engine = Engine(TableTarget(VOCABULARY), {"d": Plain()}, drafter="d", chunk_tokens=6)
    params = SamplingParams(seed=3, max_tokens=9, ignore_eos=True, prompt_logprobs=2)
    request = engine.submit(PROMPT, params)
    events = []
    for step in range(60):
        if step in (3, 4, 15):
            engine.preempt(request)
        events += engine.step()
    assert engine.load.preemptions == 3
    done = events[-1].finish
    assert (done.prompt_logprobs, done.token_ids) == (expected.prompt_logprobs, expected.token_ids)
    assert engine.load.prefix_hit_tokens > 0, "what is told already may be found"


def test_a_prompt_whose_logits_are_no_numbers_ends_its_request() -> None:
    class Ill(TableTarget):
        def forward(self, draft, taps):
            scores = super().forward(draft, taps)
            scores.logits[draft.positions[draft.scored] == 40, 2] = np.nan
            return scores

    engine = Engine(Ill(VOCABULARY), {"d": Plain()}, drafter="d")
    done = told(engine)
    assert (done.finish_reason, done.token_ids) == ("error", ())
    assert done.stop_reason == "the target gave logits that are not finite, in the prompt"
    assert len(done.prompt_logprobs) <= 41
    assert told(engine, prompt_logprobs=None).finish_reason == "length"
    assert engine.load.prefix_hit_tokens == 0


def test_log_probabilities_of_a_prompt_of_one_token_are_none() -> None:
    engine = Engine(TableTarget(VOCABULARY), {"d": Plain()}, drafter="d")
    (done,) = engine.generate([1], SamplingParams(max_tokens=1, prompt_logprobs=0))
    assert done.prompt_logprobs == (None,)
    with pytest.raises(ConfigError, match="prompt_logprobs must be a whole number, 0 to 20, or None; got 21"):
        SamplingParams(prompt_logprobs=21)
