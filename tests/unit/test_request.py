"""What one request knows of itself: its seat, its counts, its times, what it still has to be told."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.cache import Seat
from paceline.core import Promise
from paceline.laws import Controls, Failure
from paceline.request import Request
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.transcript import Transcript


def request(prompt: int = 4, limit: int = 20, **params: Any) -> Request:
    """A request whose prompt has so many tokens; token 9 ends an answer."""
    tokens = list(range(1, prompt + 1))
    return Request(
        0,
        0,
        tokens,
        Controls(SamplingParams(**params), [9], tokens),
        Transcript(None, (), 0),
        seed=0,
        drafter="none",
        prediction=(),
        inputs=None,
        limit=limit,
        budget=None,
        salt=None,
        outbox=[],
    )


def seat(slot: int) -> Seat:
    return Seat(slot, None, 0, [])


def done(one: Request, now: tuple[float, float]) -> Completion:
    return one.completion("stop", 9, "match", Promise.TOKENS, now)


def test_it_begins_with_nothing() -> None:
    one = request()
    assert (one.cached, one.sound, one.slot) == (0, False, -1)
    assert (one.passes, one.drafted, one.accepted, one.accepted_lengths, one.drafts) == (0, 0, 0, {}, {})


def test_it_has_the_slot_of_its_seat_whose_tokens_are_not_sound_yet() -> None:
    one = request()
    one.sound = True
    one.resume(seat(5), (1.0, 2.0))
    assert (one.slot, one.sound, one.admitted_at) == (5, False, (1.0, 2.0))
    one.seat = None
    assert one.slot == -1


def test_drafts_are_counted_by_what_was_drafted_and_what_was_kept() -> None:
    one = request()
    for drafted, accepted in ((3, 0), (3, 2), (0, 0), (3, 2), (5, 2)):
        one.count(drafted, accepted)
    assert (one.passes, one.drafted, one.accepted) == (5, 14, 6)
    assert one.accepted_lengths == {0: 2, 2: 3}
    assert one.drafts == {3: {0: 1, 2: 2}, 0: {0: 1}, 5: {2: 1}}


@pytest.mark.parametrize(
    ("cached", "known", "end", "places"),
    [
        (0, 1, 3, [0, 1, 2]),
        (0, 1, 9, [0, 1, 2]),
        (2, 3, 9, [2]),
        (2, 1, 3, [2]),
        (0, 3, 4, [2]),
        (0, 4, 9, []),
    ],
)
def test_it_wants_the_logits_of_its_prompt_that_nobody_has_told(
    cached: int, known: int, end: int, places: list[int]
) -> None:
    one = request(prompt_logprobs=0)
    assert one.prompt_logprobs == [None]
    one.cached, one.prompt_logprobs = cached, [None] * known
    assert list(one.wanted(end)) == places
    assert one.told == (known == 4)


def test_without_a_wish_everything_is_told() -> None:
    one = request()
    assert one.told
    assert list(one.wanted(4)) == []


def test_what_went_by_while_it_waited_is_not_in_its_times() -> None:
    one = request()
    one.resume(seat(0), (1.0, 10.0))
    one.first_token_at = (2.0, 13.0)
    one.preempted_at, one.seat = (4.0, 20.0), None
    waiting = done(one, (90.0, 900.0)).timings
    assert (waiting.prefill_s, waiting.decode_s, waiting.target_s, waiting.other_s) == (3.0, 7.0, 3.0, 7.0)
    one.resume(seat(1), (5.0, 120.0))
    assert one.preempted_at is None
    timings = done(one, (6.5, 121.0)).timings
    assert (timings.prefill_s, timings.decode_s) == (3.0, 8.0)
    assert (timings.target_s, timings.other_s) == (4.5, 6.5)


def test_one_that_was_never_admitted_took_no_time() -> None:
    timings = done(request(), (3.0, 30.0)).timings
    assert (timings.prefill_s, timings.decode_s, timings.target_s, timings.other_s) == (0, 0, 0, 0)


def test_an_answer_ends_at_the_first_ending_token_and_what_is_behind_is_taken_out() -> None:
    one = request()
    tokens = [5, 9, 6, 9]
    assert one.grow(tokens)[1:] == ("stop", 9)
    assert tokens == [5, 9]
    assert one.history == [1, 2, 3, 4, 5, 9]


def test_a_failure_ends_the_answer_before_its_token_and_is_then_forgotten() -> None:
    one = request()
    one.controls.failures = {(5,): Failure("error", "why"), (5, 6): Failure("error", "later")}
    tokens = [5, 6, 7]
    assert one.grow(tokens)[1:] == ("error", "why")
    assert tokens == [5]
    assert one.controls.failures == {}


def test_an_answer_of_full_length_ends() -> None:
    one = request(limit=6)
    assert one.grow([5])[1:] == (None, None)
    assert one.grow([5])[1:] == ("length", None)
