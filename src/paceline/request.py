"""One answer in the making: what the scheduler knows of it, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from paceline.cache import Seat
from paceline.core import Budget, Promise
from paceline.laws import Controls
from paceline.results import Completion, Event, FinishReason, Stats, Timings, TokenLogprobs
from paceline.transcript import Transcript

Time = tuple[float, float]
"""Seconds that the engine worked inside the target, and in all: what `Stopwatch.read` says."""


class Growth(NamedTuple):
    """What some tokens made of an answer.

    text: safe to show; reason, stop: as in Completion if the answer ended, else None.
    """

    text: str
    reason: FinishReason | None
    stop: str | int | None


class Request:
    """One answer in the making. The first `cached` tokens of `history` are in the target's cache; while it
    runs it has a seat there."""

    __slots__ = (
        "accepted",
        "accepted_lengths",
        "admitted_at",
        "budget",
        "cached",
        "controls",
        "drafted",
        "drafter",
        "drafts",
        "first_token_at",
        "history",
        "id",
        "index",
        "inputs",
        "limit",
        "logprobs",
        "outbox",
        "passes",
        "prediction",
        "preempted_at",
        "prompt",
        "prompt_logprobs",
        "salt",
        "seat",
        "seed",
        "sound",
        "transcript",
    )

    def __init__(
        self,
        id: int,
        index: int,
        prompt: Sequence[int],
        controls: Controls,
        transcript: Transcript,
        *,
        seed: int,
        drafter: str,
        prediction: Sequence[int],
        inputs: Any,
        limit: int,
        budget: Budget | None,
        salt: str | None,
        outbox: list[Event],
    ) -> None:
        self.id = id
        self.index = index  # which answer to its prompt
        self.history = list(prompt)  # prompt and answer
        self.prompt = len(prompt)
        self.controls = controls
        self.transcript = transcript
        self.logprobs: list[TokenLogprobs] | None = None if controls.params.logprobs is None else []
        # What is known so far; before the first token there is nothing to draw it from.
        self.prompt_logprobs: list[TokenLogprobs | None] | None = (
            None if controls.params.prompt_logprobs is None else [None]
        )
        self.seed = seed
        self.drafter = drafter
        self.prediction = prediction  # the answer that the caller expects, for drafters; may be empty
        self.inputs = inputs  # what the target gets beside tokens; None: nothing
        self.limit = limit  # length of prompt and answer together at which the answer is cut
        self.budget = budget  # what the caller allows to be drafted for it in a step
        self.salt = salt  # whose pages it may share; None: nobody's
        self.outbox = outbox  # where its events go
        self.seat: Seat | None = None
        self.cached = 0
        self.sound = False  # a token was drawn from what is in its seat, so that this is no nonsense
        self.passes = self.drafted = self.accepted = 0
        self.accepted_lengths: dict[int, int] = {}
        self.drafts: dict[int, dict[int, int]] = {}
        self.admitted_at: Time | None = None
        self.first_token_at: Time | None = None
        self.preempted_at: Time | None = None

    def grow(self, tokens: list[int]) -> Growth:
        """Add tokens up to the first that ends the answer: ending token, complete grammar, stop string or
        length, whichever comes first. Those behind it are taken out of `tokens`."""
        reason: FinishReason | None = None
        stop: str | int | None = None
        if self.controls.failures:
            places = [p for p in range(len(tokens)) if tuple(tokens[:p]) in self.controls.failures]
            if places:
                reason, stop = self.controls.failures[tuple(tokens[: places[0]])]
                del tokens[places[0] :]
            self.controls.failures.clear()
        spoken = len(tokens)
        for place, token in enumerate(tokens):
            if token in self.controls.ending:
                reason, stop, spoken = "stop", token, place
                del tokens[place + 1 :]
                break
        if (matcher := self.controls.matcher) is not None:
            taken, complete = matcher.advance(tokens[:spoken])
            if complete or taken < spoken:
                reason, stop = ("stop", None) if complete else ("cancelled", matcher.failure)
                spoken = taken
                del tokens[taken:]
        heard = self.transcript.push(tokens[:spoken])
        text = heard.text
        if heard.stop is not None:
            reason, stop = "stop", heard.stop
            del tokens[heard.used :]
        elif reason is None and len(self.history) + len(tokens) == self.limit:
            reason = "length"
        if reason is not None and heard.stop is None:
            heard = self.transcript.finish()
            text += heard.text
            if heard.stop is not None:
                reason, stop = "stop", heard.stop
        self.history.extend(tokens)
        self.controls.answered(tokens)
        return Growth(text, reason, stop)

    def count(self, drafted: int, accepted: int) -> None:
        """Note how the draft of one pass fared."""
        self.passes += 1
        self.drafted += drafted
        self.accepted += accepted
        self.accepted_lengths[accepted] = self.accepted_lengths.get(accepted, 0) + 1
        kept = self.drafts.setdefault(drafted, {})
        kept[accepted] = kept.get(accepted, 0) + 1

    @property
    def slot(self) -> int:
        """Its sequence in the target, while it runs; -1 while it waits."""
        return -1 if self.seat is None else self.seat.slot

    @property
    def told(self) -> bool:
        """Whether all log-probabilities of the prompt are known that its caller wants."""
        return self.prompt_logprobs is None or len(self.prompt_logprobs) == self.prompt

    def wanted(self, end: int) -> range:
        """Places of the history from `cached` to `end` whose logits tell log-probabilities of the prompt that
        are not known yet."""
        if self.prompt_logprobs is None:
            return range(0)
        known = len(self.prompt_logprobs) - 1
        return range(max(self.cached, known), min(end, self.prompt - 1))

    def resume(self, seat: Seat, now: Time) -> None:
        """The request runs from now on: for the first time, or again after a preemption, whose length is
        then taken out of its times."""
        self.seat, self.sound = seat, False
        if self.preempted_at is None or self.admitted_at is None:
            self.admitted_at = now
            return
        self.admitted_at = _later(self.admitted_at, self.preempted_at, now)
        if self.first_token_at is not None:
            self.first_token_at = _later(self.first_token_at, self.preempted_at, now)
        self.preempted_at = None

    def completion(
        self, reason: FinishReason, stop: str | int | None, rule: str, promise: Promise, now: Time
    ) -> Completion:
        """The finished answer. now: what the stopwatch says."""
        answer = tuple(self.history[self.prompt :])
        return Completion(
            request=self.id,
            index=self.index,
            text=self.transcript.text,
            token_ids=answer,
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
            prompt_logprobs=None if self.prompt_logprobs is None else tuple(self.prompt_logprobs),
            finish_reason=reason,
            stop_reason=stop,
            seed=self.seed,
            drafter=self.drafter,
            rule=rule,
            promise=promise.value,
            prompt_tokens=self.prompt,
            stats=Stats(
                self.passes, len(answer), self.drafted, self.accepted, self.accepted_lengths, self.drafts
            ),
            timings=self._timings(now),
        )

    def _timings(self, now: Time) -> Timings:
        end = self.preempted_at or now
        admitted = self.admitted_at or end
        first = self.first_token_at or end
        target = end[0] - admitted[0]
        return Timings(
            prefill_s=first[1] - admitted[1],
            decode_s=end[1] - first[1],
            target_s=target,
            other_s=end[1] - admitted[1] - target,
        )


def _later(time: Time, left: Time, now: Time) -> Time:
    """The time, put off by what went by from `left` to `now`."""
    return time[0] + now[0] - left[0], time[1] + now[1] - left[1]
