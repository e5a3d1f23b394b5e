"""Which requests advance in a step, and by how much."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count

from paceline.core import Budget, Draft, Drawn, Rule, TargetInfo, Verdict, View
from paceline.errors import CapacityError, ConfigError
from paceline.laws import Controls, Laws
from paceline.request import Request
from paceline.results import Completion, Event, FinishReason
from paceline.sampling import SamplingParams
from paceline.stopwatch import Stopwatch
from paceline.transcript import Transcript


class Scheduler:
    """First come, first served. A request is admitted once a slot is free and the cache has room for its
    whole life, so that no running request is ever thrown out unless somebody asks for it.

    nodes         drafted tokens per step at most
    chunk_tokens  prompt tokens per step, taken by the rows that still read, oldest first
    max_batch     requests that run at the same time
    rule          decides which drafted tokens are kept, which is not the scheduler's business, and with
                  whose noise drafters draw, which it tells them
    """

    def __init__(
        self,
        info: TargetInfo,
        watch: Stopwatch,
        *,
        nodes: int,
        chunk_tokens: int,
        max_batch: int,
        rule: Rule,
    ) -> None:
        self._info = info
        self._watch = watch
        self._nodes = nodes
        self._chunk_tokens = chunk_tokens
        self._rule = rule
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._planned: list[Request] = []
        self._requests: dict[int, Request] = {}  # all that wait or run
        self._free_slots = list(range(max_batch - 1, -1, -1))
        self._free_tokens = info.cache_tokens // info.page_tokens * info.page_tokens
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
        pages = -(-(limit + self._nodes + 1) // info.page_tokens)
        whole = info.cache_tokens // info.page_tokens * info.page_tokens
        if limit > whole:
            raise CapacityError(
                f"prompt and answer may need {limit} tokens of cache, it holds {whole}; "
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
            limit=limit,
            reserved=min(pages * info.page_tokens, whole),
            outbox=outbox,
        )
        self._waiting.append(request)
        self._requests[request.id] = request
        return request.id

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._requests

    def plan(self) -> tuple[View, list[Budget]] | None:
        """The rows of the next step and what may be drafted for each at most; None when idle."""
        self._admit()
        if not self._running:
            return None
        chunk = self._chunk_tokens
        planned, ends = [], []
        for request in self._running:
            known = len(request.history) - request.cached
            if known > 1:
                known = min(known, chunk)
                chunk -= known
            if known:
                planned.append(request)
                ends.append(request.cached + known)
        self._planned = planned
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
            coupled=Drawn.COUPLED in self._rule.takes,
        )
        return view, self._limits(ends)

    def _limits(self, ends: list[int]) -> list[Budget]:
        """What may be drafted for each row: as much as the answer still takes and the cache holds. A row that
        reads its prompt gets nothing: its pass is bound by arithmetic, where a drafted token costs as much
        as any other."""
        limits = []
        for request, end in zip(self._planned, ends, strict=True):
            depth = request.limit - len(request.history) - 1
            if len(request.history) - request.cached == 1 and depth > 0:
                limits.append(Budget(max(0, min(self._nodes, request.reserved - end)), depth))
            else:
                limits.append(Budget(0, 0))
        return limits

    def _admit(self) -> None:
        while self._waiting and self._free_slots and self._waiting[0].reserved <= self._free_tokens:
            request = self._waiting.popleft()
            request.slot = self._free_slots.pop()
            self._free_tokens -= request.reserved
            request.resume(self._watch.read("plan"))
            self._running.append(request)

    def apply(self, draft: Draft, verdict: Verdict, laws: Laws) -> list[int]:
        """Extend the answers, send their events, and return the slots of those that ended."""
        offsets = draft.offsets.tolist()
        for row, request in enumerate(self._planned):
            root = draft.roots[row]
            if root < 0:
                request.cached += offsets[row + 1] - offsets[row]
                continue
            path = verdict.paths[row]
            request.cached += root + 1 - offsets[row] + len(path)
            tokens = [int(draft.tokens[node]) for node in path]
            tokens.append(verdict.next_tokens[row])
            self._extend(request, [root, *path], tokens, offsets[row + 1] - root - 1, laws)
        self._planned = []
        ended, self._ended_slots = self._ended_slots, []
        return ended

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
            logprobs = tuple(map(laws.logprobs, nodes, tokens))  # as many as there are tokens
            request.logprobs += logprobs
        finish = None if growth.reason is None else self._end(request, growth.reason, growth.stop)
        request.outbox.append(Event(request.id, growth.text, tuple(tokens), logprobs, finish))

    def preempt(self, request_id: int) -> list[int]:
        """Take a running request's slot and cache and put it at the front of the queue; it goes on later,
        with the tokens it would have had anyway, once its prompt and answer have been read anew.

        Returns the slots that are free now. A request that does not run is no error.
        """
        request = self._requests.get(request_id)
        if request is None or request.slot < 0:
            return []
        slot = self._leave(request)
        request.slot, request.cached = -1, 0
        request.preempted_at = self._watch.read("plan")
        self._waiting.appendleft(request)
        return [slot]

    def _leave(self, request: Request) -> int:
        """The request runs no longer; its slot, now free."""
        self._running.remove(request)
        self._free_slots.append(request.slot)
        self._free_tokens += request.reserved
        return request.slot

    def cancel(self, request_id: int) -> list[int]:
        """End a request now and return its slot, if it had one. A request that is not here is no error."""
        request = self._requests.get(request_id)
        if request is not None:
            text = request.transcript.finish().text
            finish = self._end(request, "cancelled", None)
            logprobs = None if request.logprobs is None else ()
            request.outbox.append(Event(request_id, text, (), logprobs, finish))
        ended, self._ended_slots = self._ended_slots, []
        return ended

    def _end(self, request: Request, reason: FinishReason, stop: str | int | None) -> Completion:
        del self._requests[request.id]
        if request.slot < 0:
            self._waiting.remove(request)
        else:
            self._ended_slots.append(self._leave(request))
        return request.completion(reason, stop, self._rule, self._watch.read("apply"))
