"""Which requests advance in a step, and by how much."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from itertools import count, repeat
from math import isnan
from operator import attrgetter
from typing import Any, NamedTuple

from paceline.cache import Cache
from paceline.core import Budget, Draft, Drawn, PageSharing, Rule, TargetInfo, Verdict, View
from paceline.errors import CapacityError, ConfigError
from paceline.laws import Controls, Laws
from paceline.request import Request
from paceline.results import Completion, Event, FinishReason
from paceline.sampling import SamplingParams
from paceline.stopwatch import Stopwatch
from paceline.transcript import Transcript

WANTED_AT_ONCE = 32
"""Tokens of a prompt that are read in one pass if log-probabilities of the prompt are asked for: each of
them takes a row of logits."""

_BY_AGE = attrgetter("id")


class Plan(NamedTuple):
    """One step: its rows, what may be drafted for each at most, and the slots that lost their place to
    them."""

    view: View
    limits: list[Budget]
    preempted: list[int]


class Scheduler:
    """First come, first served; docs/scheduling.md says how.

    store         for a target whose sequences share pages
    nodes         drafted tokens per step at most
    chunk_tokens  tokens per step of requests that decode and of prompts together; drafted ones are counted
                  in `nodes`
    max_batch     requests that run at the same time
    rule          decides which drafted tokens are kept, which is not the scheduler's business, and with
                  whose noise drafters draw, which it tells them
    """

    def __init__(
        self,
        info: TargetInfo,
        watch: Stopwatch,
        store: PageSharing | None,
        *,
        nodes: int,
        chunk_tokens: int,
        max_batch: int,
        rule: Rule,
    ) -> None:
        self.cache = Cache(info, store)
        self.preemptions = 0
        self._info = info
        self._watch = watch
        self._nodes = nodes
        self._chunk_tokens = chunk_tokens
        self._rule = rule
        self._waiting: list[Request] = []  # the oldest first
        self._running: list[Request] = []  # the oldest first
        self._planned: list[Request] = []
        self._wanted: dict[int, range] = {}
        self._requests: dict[int, Request] = {}  # all that wait or run
        self._free_slots = list(range(max_batch - 1, -1, -1))
        self._ended_slots: list[int] = []
        self._ids = count()

    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        controls: Controls,
        transcript: Transcript,
        *,
        seed: int,
        index: int,
        drafter: str,
        prediction: Sequence[int],
        inputs: Any,
        budget: Budget | None,
        salt: str | None,
        outbox: list[Event],
    ) -> int:
        """Queue a request and return its id; its events will be appended to `outbox`.

        Raises ConfigError for a prompt that leaves no room in the context, CapacityError for a request
        that the whole cache could not hold.
        """
        info = self._info
        if not 1 <= len(prompt) < info.max_positions:
            raise ConfigError(
                f"the prompt has {len(prompt)} tokens; this model takes 1 to {info.max_positions - 1}"
            )
        limit = min(len(prompt) + params.max_tokens, info.max_positions)
        if limit > self.cache.tokens:
            raise CapacityError(
                f"prompt and answer may need {limit} tokens of cache, it holds {self.cache.tokens}; "
                "lower max_tokens or raise cache_tokens"
            )
        request = Request(
            next(self._ids),
            index,
            prompt,
            controls,
            transcript,
            seed=seed,
            drafter=drafter,
            prediction=prediction,
            inputs=inputs,
            limit=limit,
            budget=budget,
            salt=salt,
            outbox=outbox,
        )
        self._waiting.append(request)
        self._requests[request.id] = request
        return request.id

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._requests

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that have none."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Requests that could run beside those that do, if the cache has room."""
        return len(self._free_slots)

    def plan(self) -> Plan | None:
        """The next step; None when idle. The preempted slots must be released before its pass."""
        preempted = self._make_room()
        if not preempted:
            self._admit()
        if not self._running:
            return None
        planned, ends = [], []
        for request, known in zip(self._running, self._known(), strict=True):
            if known:
                planned.append(request)
                ends.append(request.cached + known)
        self._planned = planned
        self._wanted = {
            request.slot: places
            for request, end in zip(planned, ends, strict=True)
            if (places := request.wanted(end))
        }
        view = View(
            [request.slot for request in planned],
            [request.history for request in planned],
            [request.cached for request in planned],
            ends,
            [request.controls for request in planned],
            [request.seed for request in planned],
            [request.prompt for request in planned],
            [request.drafter for request in planned],
            {request.slot: request.prediction for request in planned if request.prediction},
            wanted=self._wanted,
            inputs={request.slot: request.inputs for request in planned if request.inputs is not None},
            coupled=Drawn.COUPLED in self._rule.takes,
        )
        return Plan(view, self._limits(ends), preempted)

    def _make_room(self) -> list[int]:
        """See to it that every request has pages for what it holds next. Where there are none the newest
        loses its place: the oldest always gets on. Returns the slots that were lost."""
        lost: list[int] = []
        for request in tuple(self._running):
            while request.seat is not None and not self.cache.grow(request.seat, len(request.history)):
                lost.append(self._preempt(self._running[-1]))
        return lost

    def _admit(self) -> None:
        """Let the oldest requests in while there is room for all that is known of them."""
        while self._waiting and self._free_slots:
            request = self._waiting[0]
            follows = self._follows(request)
            # Where log-probabilities of the prompt are wanted all of it is read: what is not has no logits.
            text = request.history if request.told and not follows else ()
            seat = self.cache.admit(self._free_slots[-1], request.salt, text, len(request.history) + 1)
            if seat is None:
                return
            del self._waiting[0], self._free_slots[-1]
            request.resume(seat, self._watch.read("plan"))
            if not follows:
                request.cached = self.cache.begin(seat, len(text))
            insort(self._running, request, key=_BY_AGE)

    def _follows(self, request: Request) -> bool:
        """Whether an older request is about to read more of this one's text than is known, by whole pages.
        Then it pays to wait, as answers to one prompt do that come together."""
        if request.salt is None or not request.told:
            return False
        older = [
            other
            for other in self._running
            if other.id < request.id and not other.sound and other.salt == request.salt
        ]
        if not older:
            return False
        more = self.cache.known(request.salt, request.history) + self._info.page_tokens
        text = request.history[:more]
        return len(request.history) > more and any(other.history[:more] == text for other in older)

    def _known(self) -> list[int]:
        """How many of its known tokens each running request has in this step: one if it decodes; if it reads,
        a share of what these leave of the step's tokens, and if they leave less than a page, of that; none if
        an older one reads for it."""
        known = []
        for request in self._running:
            seat = request.seat
            assert seat is not None, "it runs"
            if not seat.begun and not self._follows(request):
                self.cache.look(seat, request.history)
                request.cached = self.cache.begin(seat, len(request.history))
            known.append(len(request.history) - request.cached if seat.begun else 0)
        reading = [place for place, tokens in enumerate(known) if tokens > 1]
        if reading:
            least = min(self._info.page_tokens, self._chunk_tokens)
            left = max(least, self._chunk_tokens - known.count(1))
            needs = [
                min(known[place], WANTED_AT_ONCE) if not self._running[place].told else known[place]
                for place in reading
            ]
            for place, tokens in zip(reading, portions(needs, left, least), strict=True):
                known[place] = tokens
        return known

    def _limits(self, ends: list[int]) -> list[Budget]:
        """What may be drafted for each row: as much as its caller allows, the answer still takes and the
        cache holds. A row that reads its prompt gets nothing: its pass is bound by arithmetic, where a
        drafted token costs as much as any other."""
        limits = []
        for request, end in zip(self._planned, ends, strict=True):
            nodes = self._nodes
            depth = request.limit - len(request.history) - 1
            if request.budget is not None:
                nodes, depth = min(nodes, request.budget.nodes), min(depth, request.budget.depth)
            if len(request.history) - request.cached == 1 and min(nodes, depth) > 0:
                assert request.seat is not None, "it runs"
                room = self.cache.stretch(request.seat, end + nodes) - end
                limits.append(Budget(min(nodes, room), depth))
            else:
                limits.append(Budget(0, 0))
        return limits

    def apply(self, draft: Draft, verdict: Verdict, laws: Laws) -> list[int]:
        """Extend the answers, send their events, and return the slots of those that ended."""
        offsets = draft.offsets.tolist()
        for row, request in enumerate(self._planned):
            root = draft.roots[row]
            if not self._tell_prompt(request, offsets[row], laws):
                self._stop(request, "error", "the target gave logits that are not finite, in the prompt")
                continue
            if root < 0:
                request.cached += offsets[row + 1] - offsets[row]
                continue
            path = verdict.paths[row]
            request.cached += root + 1 - offsets[row] + len(path)
            tokens = [int(draft.tokens[node]) for node in path]
            tokens.append(verdict.next_tokens[row])
            self._extend(request, [root, *path], tokens, offsets[row + 1] - root - 1, laws)
        return self._done()

    def _tell_prompt(self, request: Request, first: int, laws: Laws) -> bool:
        """Note the log-probabilities of the prompt's tokens that this step gave, if they are wanted; whether
        they are numbers. first: the row's first node."""
        top, told = request.controls.params.prompt_logprobs, request.prompt_logprobs
        for place in self._wanted.get(request.slot, ()):
            assert top is not None
            assert told is not None
            token = laws.logprobs(first + place - request.cached, request.history[place + 1], top)
            if isnan(token.logprob):
                return False
            told.append(token)
        return True

    def _extend(
        self, request: Request, nodes: list[int], tokens: list[int], drafted: int, laws: Laws
    ) -> None:
        """Add the tokens, drawn after these nodes, as far as the answer goes, and say so to its user."""
        growth = request.grow(tokens)
        if request.first_token_at is None:
            request.first_token_at = self._watch.read("apply")
        request.count(drafted, min(len(nodes) - 1, len(tokens)))
        logprobs = None
        if request.logprobs is not None:
            top = request.controls.params.logprobs or 0
            logprobs = tuple(map(laws.logprobs, nodes, tokens, repeat(top)))  # as many as there are tokens
            request.logprobs += logprobs
        first, request.sound = not request.sound, True
        finish = None
        if growth.reason is not None:
            finish = self._end(request, growth.reason, growth.stop)
        elif first:
            self._publish(request)
        request.outbox.append(Event(request.id, growth.text, tuple(tokens), logprobs, finish))

    def _publish(self, request: Request) -> None:
        """Share the pages of a request that has a place. Only once laws came of them: what a failed pass
        left, or a prompt that leads to no law, is never shared."""
        assert request.seat is not None, "it has a place"
        self.cache.publish(request.seat, request.history[: request.cached])

    def fail(self, why: str) -> list[int]:
        """The pass that was planned failed: end its requests, and return their slots. Requests that waited or
        had no part in it go on."""
        for request in self._planned:
            self._stop(request, "error", why)
        return self._done()

    def preempt(self, request_id: int) -> list[int]:
        """Take a running request's slot and cache and put it back into the queue; it goes on later, with the
        tokens it would have had anyway, once its prompt and answer have been read anew.

        Returns the slots that are free now. A request that does not run is no error.
        """
        request = self._requests.get(request_id)
        if request is None or request.seat is None:
            return []
        return [self._preempt(request)]

    def _preempt(self, request: Request) -> int:
        slot = self._leave(request)
        self.preemptions += 1
        request.cached = 0
        request.preempted_at = self._watch.read("plan")
        insort(self._waiting, request, key=_BY_AGE)
        return slot

    def _leave(self, request: Request, *, failed: bool = False) -> int:
        """The request runs no longer; its slot, now free."""
        seat = request.seat
        assert seat is not None, "it runs"
        if request.sound and not failed:
            self._publish(request)
        self.cache.leave(seat, failed=failed)
        self._running.remove(request)
        self._free_slots.append(seat.slot)
        request.seat = None
        return seat.slot

    def cancel(self, request_id: int) -> list[int]:
        """End a request now and return its slot, if it had one. A request that is not here is no error."""
        request = self._requests.get(request_id)
        if request is not None:
            self._stop(request, "cancelled", None)
        return self._done()

    def _stop(self, request: Request, reason: FinishReason, why: str | None) -> None:
        """End a request with what it has, and say so to its user."""
        text = request.transcript.finish().text
        finish = self._end(request, reason, why)
        logprobs = None if request.logprobs is None else ()
        request.outbox.append(Event(request.id, text, (), logprobs, finish))

    def _end(self, request: Request, reason: FinishReason, stop: str | int | None) -> Completion:
        del self._requests[request.id]
        if request.seat is None:
            self._waiting.remove(request)
        else:
            self._ended_slots.append(self._leave(request, failed=reason == "error"))
        promise = self._info.keeps(self._rule.promise)
        return request.completion(reason, stop, self._rule.name, promise, self._watch.read("apply"))

    def _done(self) -> list[int]:
        """The slots of requests that ended; the plan is carried out."""
        self._planned = []
        ended, self._ended_slots = self._ended_slots, []
        return ended


def portions(needs: Sequence[int], left: int, least: int) -> list[int]:
    """So many tokens, shared evenly by requests that need so many each, the oldest first: at least `least` to
    each while there are any, and none that is not needed."""
    given = [0] * len(needs)
    hungry = list(range(len(needs)))
    while hungry and left:
        share = max(least, left // len(hungry))
        for place in hungry:
            portion = min(needs[place] - given[place], share, left)
            given[place] += portion
            left -= portion
        hungry = [place for place in hungry if given[place] < needs[place]]
    return given
