"""Where answers begin and end, who runs when, and what users are told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import paceline
from paceline.core import Drafter, Rule, Step
from paceline.drafters import load
from paceline.engine import NODES, Engine
from paceline.errors import CapacityError, ConfigError
from paceline.policies.fixed import Fixed
from paceline.results import Completion, Event
from paceline.rules.match import match
from paceline.rules.recursive import recursive
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.toys import Letters, Oracle, OverBudget

VOCABULARY = 12


def engine(drafter: Drafter | None = None, *, target: TableTarget | None = None, **options: object) -> Engine:
    target = target or TableTarget(VOCABULARY)
    drafters = {"none": load("none", target.info)}
    if drafter is not None:
        drafters["d"] = drafter
    return Engine(target, drafters, drafter=list(drafters)[-1], **{"tokenizer": Letters(), **options})


def params(**fields: object) -> SamplingParams:
    return SamplingParams(**{"seed": 1, "ignore_eos": True, "max_tokens": 12, **fields})


def plain(prompt: list[int], **fields: object) -> Completion:
    return engine().generate(prompt, params(**fields))[0]


FULL = plain([1, 2])


def oracle() -> Oracle:
    """Knows the answer to [1, 2] with seed 1."""
    return Oracle({1: FULL.token_ids})


def speculative(**fields: object) -> Completion:
    return engine(oracle()).generate([1, 2], params(**fields))[0]


def test_an_answer_ends_at_max_tokens_inside_a_draft() -> None:
    for length in range(1, 13):
        done = speculative(max_tokens=length)
        assert done.token_ids == FULL.token_ids[:length]
        assert (done.finish_reason, done.stop_reason) == ("length", None)


def test_an_answer_ends_at_a_stop_id_inside_a_draft_and_its_text_leaves_it_out() -> None:
    for place, token in enumerate(FULL.token_ids):
        first = FULL.token_ids.index(token)
        done = speculative(stop_token_ids=[token])
        assert done.token_ids == FULL.token_ids[: first + 1]
        assert (done.finish_reason, done.stop_reason) == ("stop", token)
        assert done.text == "".join(chr(97 + t) for t in FULL.token_ids[:first]), place


def test_a_stop_string_over_two_tokens_inside_a_draft_ends_the_answer_and_is_cut() -> None:
    for place in range(len(FULL.token_ids) - 1):
        stop = FULL.text[place : place + 2]
        first = FULL.text.index(stop)
        done = speculative(stop=[stop])
        assert (done.text, done.stop_reason) == (FULL.text[:first], stop)
        assert len(done.token_ids) >= first + 2
        assert done.token_ids == plain([1, 2], stop=[stop]).token_ids


def test_a_stop_string_that_the_end_of_the_answer_completes_counts() -> None:
    """Token 5 shows its letter only with the next one, or when the answer ends."""
    fields = {"logit_bias": {5: 100}, "stop": ["ff"], "max_tokens": 2}
    for drafter in (None, Oracle({1: (5, 5)})):
        done = engine(drafter).generate([1, 2], params(**fields))[0]
        assert (done.token_ids, done.text) == ((5, 5), "")
        assert (done.finish_reason, done.stop_reason) == ("stop", "ff")


def test_the_model_s_own_end_token_stops_unless_it_is_ignored() -> None:
    ended = [engine().generate([1, 2], SamplingParams(seed=seed, max_tokens=200))[0] for seed in range(20)]
    assert all(done.token_ids[-1] == 0 and done.stop_reason == 0 for done in ended)
    assert all(0 not in done.token_ids[:-1] for done in ended)
    assert 0 in engine().generate([1, 2], params(max_tokens=200))[0].token_ids


def test_min_tokens_forbids_ending_tokens_and_early_stop_strings() -> None:
    for seed in range(30):
        done = engine().generate([1, 2], SamplingParams(seed=seed, min_tokens=9, stop_token_ids=[3, 4]))[0]
        assert len(done.token_ids) > 9
        assert not {0, 3, 4} & set(done.token_ids[:9])
    stop = FULL.text[0]
    late = speculative(stop=[stop], min_tokens=2)
    assert len(late.token_ids) >= 2


def test_an_answer_ends_with_the_context_inside_a_draft() -> None:
    target = TableTarget(VOCABULARY, max_positions=10)
    done = engine(oracle(), target=target).generate([1, 2], params())[0]
    assert (done.token_ids, done.finish_reason) == (FULL.token_ids[:8], "length")


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    small = engine(target=TableTarget(VOCABULARY, max_positions=10))
    assert len(small.generate([1] * 9, params())[0].token_ids) == 1
    for prompt in ([1] * 10, []):
        with pytest.raises(
            ConfigError, match=f"the prompt has {len(prompt)} tokens; this model takes 1 to 9"
        ):
            small.submit(prompt)
    assert small.idle


def test_a_request_that_no_cache_could_hold_is_refused() -> None:
    small = engine(target=TableTarget(VOCABULARY, cache_tokens=64))
    with pytest.raises(CapacityError, match="may need 82 tokens of cache, it holds 64; lower max_tokens"):
        small.submit([1, 2], params(max_tokens=80))
    assert len(small.generate([1, 2], params(max_tokens=62))[0].token_ids) == 62


def test_drafting_never_outgrows_the_cache_at_the_end_of_a_full_one() -> None:
    target = TableTarget(VOCABULARY, cache_tokens=16)
    done = engine(OverBudget({1: FULL.token_ids}), target=target).generate([1, 2], params(max_tokens=14))[0]
    assert done.token_ids[:12] == FULL.token_ids
    assert len(done.token_ids) == 14


def test_requests_wait_for_room_in_the_cache_in_the_order_they_came() -> None:
    busy = engine(target=TableTarget(VOCABULARY, cache_tokens=96), max_batch=8, nodes=4)
    lengths = [60, 20, 5, 5]
    ids = [busy.submit([1], params(max_tokens=length, seed=length)) for length in lengths]
    first_seen: list[int] = []
    while not busy.idle:
        for event in busy.step():
            if event.request not in first_seen:
                first_seen.append(event.request)
    assert first_seen == ids
    assert not busy.target._cache


def test_no_more_than_max_batch_requests_run_at_once() -> None:
    busy = engine(max_batch=3)
    for _ in range(8):
        busy.submit([1], params(max_tokens=4))
    widths = []
    while not busy.idle:
        widths.append(len(busy.step()))
    assert max(widths) == 3
    assert sum(widths) == 32


def test_a_prompt_is_read_in_chunks_while_others_go_on() -> None:
    mixed = engine(chunk_tokens=4, max_batch=4)
    short = mixed.submit([1], params(max_tokens=9))
    mixed.step()
    long = mixed.submit([1, 2, 3] * 6, params(max_tokens=2))
    seen = [{event.request for event in mixed.step()} for _ in range(5)]
    assert seen == [{short}] * 4 + [{short, long}]


class Watching(Oracle):
    """Notes the rows it observes."""

    def __init__(self) -> None:
        super().__init__({})
        self.rows: list[tuple[int, int, bool]] = []

    def observe(self, step: Step) -> None:
        view = step.view
        self.rows += [(view.starts[r], view.ends[r], view.draws(r)) for r in range(len(view.slots))]


def test_every_chunk_of_a_prompt_is_observed_as_a_step() -> None:
    watching = Watching()
    engine(watching, chunk_tokens=4).generate([1] * 10, params(max_tokens=2))
    assert watching.rows == [(0, 4, False), (4, 8, False), (8, 10, True), (10, 11, True)]


def test_a_policy_that_was_told_to_score_more_than_is_usual_does() -> None:
    answer = plain([1, 2], max_tokens=60).token_ids
    for policy, most in (Fixed(), NODES), (Fixed(nodes=40), 40), (Fixed(nodes=3), 3):
        done = engine(Oracle({1: answer}), policy=policy).generate([1, 2], params(max_tokens=60))[0]
        assert done.token_ids == answer
        assert max(done.stats.drafts) == most
    with pytest.raises(ConfigError, match=r"told to score 40 .* nodes allow 8"):
        engine(policy=Fixed(nodes=40), nodes=8)


def test_a_stream_gives_the_completion_piece_by_piece() -> None:
    for stop in ([], [FULL.text[5:7]]):
        events = list(engine(oracle(), nodes=3).stream([1, 2], params(stop=stop)))
        finish = events[-1].finish
        assert finish is not None
        assert all(event.finish is None for event in events[:-1])
        assert "".join(event.text for event in events) == finish.text
        assert sum((event.token_ids for event in events), ()) == finish.token_ids
        assert finish.token_ids == plain([1, 2], stop=stop).token_ids
        assert len(events) < len(finish.token_ids)


def test_two_streams_and_a_submitted_request_share_the_engine_and_lose_nothing() -> None:
    shared = engine(max_batch=3)
    submitted = shared.submit([5], params(max_tokens=3))
    left, right = shared.stream([1, 2], params()), shared.stream([1, 3], params())
    pairs = list(zip(left, right, strict=True))
    assert pairs[-1][0].finish.token_ids == FULL.token_ids
    assert pairs[-1][1].finish.token_ids == plain([1, 3]).token_ids
    rest = shared.step()
    assert [event.request for event in rest] == [submitted] * 3
    assert rest[-1].finish.token_ids == plain([5], max_tokens=3).token_ids


def test_a_closed_stream_is_cancelled() -> None:
    one = engine()
    stream = one.stream([1, 2], params())
    next(stream)
    stream.close()
    assert one.idle
    assert not one.target._cache


def test_a_cancelled_request_ends_with_what_it_has_running_or_waiting() -> None:
    busy = engine(max_batch=1)
    running, waiting = busy.submit([1, 2], params(stop=["zz"])), busy.submit([1, 2], params())
    events: list[Event] = [*busy.step(), *busy.step()]
    busy.cancel(waiting)
    busy.cancel(running)
    busy.cancel(running)
    busy.cancel(12345)
    events += busy.step()
    finished = {event.request: event.finish for event in events if event.finish}
    assert finished[running].token_ids == FULL.token_ids[:2]
    assert finished[running].text == FULL.text[:2]
    assert finished[waiting].token_ids == ()
    assert {done.finish_reason for done in finished.values()} == {"cancelled"}
    assert busy.idle
    assert busy.generate([1, 2], params())[0].token_ids == FULL.token_ids


def test_a_failing_pass_ends_its_requests_and_leaves_the_engine_usable() -> None:
    target = TableTarget(VOCABULARY)
    shaky = engine(target=target, max_batch=2)
    forward = target.forward
    target.forward = None
    ids = [shaky.submit(prompt, params()) for prompt in ([1, 2], [3], [1, 2])]
    ended = {event.request: event.finish for event in shaky.step()}
    target.forward = forward
    assert list(ended) == ids[:2], "the third one only waited"
    for done in ended.values():
        assert (done.finish_reason, done.token_ids) == ("error", ())
        assert done.stop_reason == "the target's pass failed: TypeError: 'NoneType' object is not callable"
    events = []
    while not shaky.idle:
        events += shaky.step()
    assert events[-1].finish.token_ids == FULL.token_ids
    assert shaky.generate([1, 2], params())[0].token_ids == FULL.token_ids


def test_without_a_seed_a_random_one_is_drawn_and_told() -> None:
    one, two = engine().generate([[1, 2]] * 2, SamplingParams(max_tokens=30))
    assert one.seed != two.seed
    again = engine().generate([1, 2], SamplingParams(max_tokens=30, seed=one.seed))[0]
    assert again.token_ids == one.token_ids


def test_prompts_may_be_ids_text_or_messages_one_or_many() -> None:
    tokens = FULL.token_ids
    one = engine()
    for prompt in ([1, 2], (1, 2), np.array([1, 2]), "bc", [{"role": "user", "content": "bc"}]):
        assert [done.token_ids for done in one.generate(prompt, params())] == [tokens]
    many = one.generate(["bc", [1, 2], [{"role": "user", "content": "bc"}]], [params()] * 3, ["none"] * 3)
    assert [done.token_ids for done in many] == [tokens] * 3
    assert one.generate([], params()) == []


@pytest.mark.parametrize("prompt", [[12], [-1], [1.0], [True], ["a", 1]])
def test_token_ids_that_are_none_are_refused(prompt: list[object]) -> None:
    with pytest.raises(ConfigError, match="token ids are whole numbers from 0 to 11"):
        engine().submit(prompt)


def test_what_needs_a_tokenizer_says_so() -> None:
    mute = engine(tokenizer=None)
    for prompt in ("text", [{"role": "user", "content": "b"}]):
        with pytest.raises(ConfigError, match="no tokenizer"):
            mute.submit(prompt)
    with pytest.raises(ConfigError, match="stop strings need a tokenizer"):
        mute.submit([1], SamplingParams(stop="a"))
    assert mute.generate([1, 2], params())[0].text == ""


def test_wrong_choices_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="drafter 'x' is not loaded; loaded are none"):
        engine().submit([1], drafter="x")
    with pytest.raises(ConfigError, match="nodes must be at least 1, got 0"):
        engine(nodes=0)
    with pytest.raises(ConfigError, match="token id 12; this model has 0 to 11"):
        engine().submit([1], SamplingParams(stop_token_ids=[12]))
    with pytest.raises(ConfigError, match="params: give one or one per prompt; got 2, prompts are 1"):
        engine().generate("b", [params()] * 2)


def test_stats_and_timings_add_up() -> None:
    done = speculative()
    stats = done.stats
    assert stats.tokens == len(done.token_ids) == 12
    assert sum(stats.accepted_lengths.values()) == stats.passes
    assert (
        sum(k * v for k, v in stats.accepted_lengths.items()) == stats.accepted == stats.tokens - stats.passes
    )
    assert stats.tau == 12 / stats.passes > 1
    assert stats.acceptance_rate == stats.accepted / stats.drafted
    assert FULL.stats.tau == 1
    assert FULL.stats.acceptance_rate == 0
    timings = done.timings
    assert timings.prefill_s > 0 < timings.decode_s
    assert timings.target_s + timings.other_s == pytest.approx(timings.prefill_s + timings.decode_s)


def test_several_answers_to_one_prompt_come_in_order_with_seeds_of_their_own() -> None:
    one = engine()
    done = one.generate([[1, 2], [3]], [params(), params(seed=9)], n=3)
    assert [(c.prompt_tokens, c.index) for c in done] == [(2, 0), (2, 1), (2, 2), (1, 0), (1, 1), (1, 2)]
    assert done[0].token_ids == FULL.token_ids
    assert len({c.token_ids for c in done}) == 6
    for c in done:
        alone = one.generate([[1, 2]] if c.prompt_tokens == 2 else [[3]], params(seed=c.seed))[0]
        assert (alone.token_ids, alone.index) == (c.token_ids, 0)
    assert len({c.seed for c in one.generate([1], SamplingParams(max_tokens=2), n=128)}) == 128


@pytest.mark.parametrize("n", [0, -1, 129, 1.0, True, "2", None])
def test_a_number_of_answers_out_of_range_is_refused(n: object) -> None:
    with pytest.raises(ConfigError, match="n must be a whole number, 1 to 128"):
        engine().generate([1], params(), n=n)


def test_a_preempted_request_gives_up_its_place_and_goes_on_first() -> None:
    busy = engine(oracle(), max_batch=2, nodes=2)
    ids = [busy.submit([1, 2], params()) for _ in range(3)]
    seen = [{event.request for event in busy.step()}]
    busy.preempt(ids[0])
    assert len(busy.target._cache) == 1
    busy.preempt(ids[0])  # waits already
    busy.preempt(12345)
    finished = {}
    while not busy.idle:
        events = busy.step()
        seen.append({event.request for event in events})
        finished.update((event.request, event.finish) for event in events if event.finish)
    assert seen[:2] == [set(ids[:2])] * 2, "at the front of the queue"
    assert {done.token_ids for done in finished.values()} == {FULL.token_ids}
    assert not busy.target._cache
    stats = finished[ids[0]].stats
    assert sum(stats.accepted_lengths.values()) == stats.passes
    assert stats.tokens == stats.passes + stats.accepted == 12


def test_time_spent_waiting_after_a_preemption_is_not_counted() -> None:
    clock = [0.0]

    class SecondByPass(TableTarget):
        def forward(self, draft, taps):
            clock[0] += 1
            return super().forward(draft, taps)

    def seconds(steps: int | None) -> tuple[float, float]:
        """Of a request that is preempted after so many steps, while another one takes its place."""
        busy = engine(target=SecondByPass(VOCABULARY), max_batch=1, chunk_tokens=1, clock=lambda: clock[0])
        first = busy.submit([1, 2, 3], params(max_tokens=4))
        if steps is not None:
            for _ in range(steps):
                busy.step()
            other = busy.submit([5], params(max_tokens=20))
            clock[0] += 1000  # nobody steps: nobody's time
            busy.preempt(first)
            busy._scheduler._waiting.reverse()  # the other one first
            while other in busy._scheduler._requests:
                busy.step()
        (times,) = [
            event.finish.timings
            for _ in range(9)
            for event in busy.step()
            if event.finish and event.request == first
        ]
        assert (times.target_s, times.other_s) == (times.prefill_s + times.decode_s, 0)
        return times.prefill_s, times.decode_s

    assert seconds(None) == (3, 3)
    assert seconds(2) == (5, 3)  # two tokens of the prompt are read twice
    assert seconds(4) == (3, 7)  # of the prompt and two tokens, all but the last one


def test_a_preempted_request_can_be_cancelled() -> None:
    busy = engine(max_batch=1)
    request = busy.submit([1, 2], params())
    busy.step()
    busy.preempt(request)
    busy.cancel(request)
    (event,) = [event for event in busy.step() if event.finish]
    assert event.finish.token_ids == FULL.token_ids[:1]
    assert event.finish.timings.decode_s >= 0
    assert busy.idle


def test_ids_of_requests_rise() -> None:
    one = engine()
    ids = [one.submit([1], params()) for _ in range(3)]
    assert all(a < b for a, b in pairwise(ids))


def test_the_package_imports_fast_and_names_what_it_offers() -> None:
    code = "import sys, time; t = time.perf_counter(); import paceline; print(time.perf_counter() - t)"
    code += "; assert 'numpy' not in sys.modules"
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))
    assert seconds < 0.3
    assert all(getattr(paceline, name) for name in paceline.__all__ if paceline._HOMES[name] != "hf")
    assert set(paceline.__all__) == set(paceline._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = paceline.nonsense


def test_without_pytorch_its_names_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "paceline.hf", raising=False)
    for name in ("hf", "accelerate"):
        with pytest.raises(
            ImportError, match=rf"paceline.{name} needs PyTorch: pip install 'paceline\[torch\]'"
        ):
            getattr(paceline, name)


def test_a_prediction_goes_to_the_drafter_of_that_name_and_changes_nothing() -> None:
    target = TableTarget(VOCABULARY)
    own = load("prediction", target.info)
    two = Engine(
        target, {"none": load("none", target.info), "prediction": own}, drafter="none", tokenizer=Letters()
    )
    for prediction in (FULL.token_ids, np.array(FULL.token_ids), FULL.text):
        done = two.generate([1, 2], params(), prediction=prediction)[0]
        assert done.token_ids == FULL.token_ids
        assert done.drafter == "prediction"
        assert done.stats.accepted > 0
    assert two.generate([1, 2], params())[0].drafter == "none"
    several = two.generate([[1, 2], [1, 2]], params(), prediction=[FULL.token_ids, None])
    assert [done.drafter for done in several] == ["prediction", "none"]
    assert [done.token_ids for done in several] == [FULL.token_ids] * 2
    *_, last = two.stream([1, 2], params(), prediction=FULL.token_ids)
    assert last.finish.drafter == "prediction"


def test_a_prediction_that_cannot_be_taken_is_refused() -> None:
    with pytest.raises(ConfigError, match="drafter 'prediction' is not loaded; loaded are"):
        engine().generate([1, 2], prediction=[1])
    target = TableTarget(VOCABULARY)
    two = Engine(target, {"prediction": load("prediction", target.info)}, drafter="prediction")
    with pytest.raises(ConfigError, match="a prediction's token ids are whole numbers from 0 to 11, got 12"):
        two.generate([1, 2], prediction=[12])
    with pytest.raises(ConfigError, match="no tokenizer; give the prediction as token ids"):
        two.generate([1, 2], prediction="ab")
    with pytest.raises(ConfigError, match="prediction: give one or one per prompt; got 3, prompts are 2"):
        two.generate([[1], [2]], prediction=["a", "b", "c"])


@pytest.mark.parametrize(
    ("rule", "row_invariant", "promise"),
    [
        (match, True, "bit-exact"),
        (match, False, "bit-exact but for ties"),
        (recursive, False, "exact in law"),
    ],
)
def test_an_answer_says_what_is_left_of_the_rules_promise_with_this_target(
    rule: Rule, row_invariant: bool, promise: str
) -> None:
    target = TableTarget(VOCABULARY)
    target.info = replace(target.info, row_invariant=row_invariant)
    (done,) = engine(target=target, rule=rule).generate([1, 2], params())
    assert done.promise == promise


@pytest.mark.parametrize("broken", [lambda tokens, logits: 1 / 0, lambda tokens, logits: logits[1:]])
def test_a_logits_processor_that_fails_ends_its_own_answer_only(broken: Callable[..., Any]) -> None:
    def later(tokens: Sequence[int], logits: NDArray[Any]) -> NDArray[Any]:
        return broken(tokens, logits) if len(tokens) > 6 else logits

    both = engine(oracle()).generate([[1, 2], [1, 2]], [params(logits_processor=later), params()])
    assert both[0].token_ids == FULL.token_ids[:5]
    assert both[0].finish_reason == "error"
    assert "the logits_processor failed: " in str(both[0].stop_reason)
    assert both[1].token_ids == FULL.token_ids
