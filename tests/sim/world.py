"""One simulation: an engine, everything that can happen to it, and what must hold after every step.

Method: deterministic simulation testing; Zhou et al., "FoundationDB", SIGMOD 2021, section 4. All that is
random comes from one seed, time is a number, and one thread runs it all, so that a seed says everything about
a run.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import dataclass, field

from paceline.core import Budget
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import QueueFull
from paceline.policies.fixed import Fixed
from paceline.policies.heuristic import Heuristic
from paceline.prefixes import Page
from paceline.request import Request
from paceline.results import Completion
from tests.sim.faults import Clock, FailingDrafter, FailingTarget
from tests.sim.jobs import LONGEST, PAGE, Job, answers, cacheable, jobs
from tests.toys import HalfRight, Letters, RandomTrees

SOMETIMES = (
    "requests ended well",
    "preempted for room",
    "preempted when asked to",
    "found pages",
    "found pages of its own after a preemption",
    "waited for another to read its prompt",
    "gave up pages",
    "read a prompt in chunks",
    "read beside requests that decode",
    "cancelled while it ran",
    "cancelled while it waited",
    "queue full",
    "all drafted tokens accepted",
    "none accepted",
    "ended inside a draft",
    "no drafting, as its caller wanted",
    "log-probabilities of a prompt",
    "a drafter was left alone",
    "a drafter was tried again",
    "a pass raised",
    "logits went bad",
    "drafted logits went bad",
    "a page went bad",
    "error",
    "drafter: raises",
    "drafter: too few trees",
    "drafter: is slow",
    "drafter: a token too large",
    "drafter: a token below 0",
    "drafter: a token that is no number",
    "drafter: its own parent",
    "drafter: too few parents",
    "drafter: a confidence that is no number",
    "drafter: an infinite confidence",
    "drafter: no tree",
)
"""What a run of many seeds must have come by: a path that is never taken is never tested."""


@dataclass
class Asked:
    """A request of the simulation. hit: something went wrong with its passes; heard: tokens of its events."""

    job: Job
    salt: str
    hit: bool = False
    heard: list[int] = field(default_factory=list)
    done: Completion | None = None


class Simulation:
    """What a seed stands for. seen: counts what happened."""

    def __init__(self, seed: int, seen: Counter[str]) -> None:
        logging.getLogger("paceline").setLevel(logging.CRITICAL)  # what fails here does so on purpose
        rng = self._rng = random.Random(seed)
        self._seen = seen
        self._clock = Clock()
        rate = rng.choice((0.0, 0.0, 0.03, 0.15))
        self._target = FailingTarget(rng, rate, rng.choice((LONGEST + PAGE, 80, 120, 400)), seen)
        self._batch = rng.randint(1, 6)
        self._engine = Engine(
            self._target,
            {
                "none": load("none", self._target.info),
                "half": HalfRight(answers()),
                "trees": RandomTrees(answers()),
                "failing": FailingDrafter(answers(), rng, rng.choice((0.02, 0.3)), self._clock, seen),
            },
            drafter="none",
            tokenizer=Letters(),
            policy=rng.choice((Fixed(), Heuristic(4, 2, 1))),
            nodes=rng.randint(1, 9),
            chunk_tokens=rng.choice((1, 3, 8, 24)),
            max_batch=self._batch,
            max_waiting=rng.choice((None, 0, 3)),
            clock=self._clock,
        )
        self._left = rng.randint(4, 16)  # requests still to come
        self._asked: dict[int, Asked] = {}
        self._preempted: set[int] = set()

    def run(self) -> None:
        """All of it. Raises AssertionError where something does not hold."""
        busy = self._rng.choice((0.1, 0.5, 0.9))
        steps = 0
        while self._left or not self._engine.idle:
            if self._left and (self._rng.random() < busy or self._engine.idle):
                self._submit()
            self._interfere()
            self._step()
            self._check()
            steps += 1
            assert steps < 3000, "somebody starves"
        assert all(asked.done for asked in self._asked.values()), "a request never ended"
        load = self._engine.load
        assert (load.running, load.waiting, load.cache_tokens_used) == (0, 0, 0)
        assert not self._target._cache

    def _submit(self) -> None:
        rng = self._rng
        job, salt = rng.choice(jobs()), rng.choice(("", "", "other"))
        limit = rng.choice((None, None, Budget(0, 0), Budget(2, 5), Budget(6, 1)))
        drafter = rng.choice(("none", "half", "trees", "failing"))
        try:
            request = self._engine.submit(job.prompt, job.params, drafter, limit=limit, cache_salt=salt)
        except QueueFull:
            self._seen["queue full"] += 1
            return
        self._left -= 1
        self._asked[request] = Asked(job, salt)
        self._seen["no drafting, as its caller wanted"] += limit == Budget(0, 0) and drafter != "none"

    def _interfere(self) -> None:
        rng, scheduler = self._rng, self._engine._scheduler
        off = self._engine.load.drafters_off
        self._clock.now += rng.choice((0.01, 0.1, 1.0, 20.0))
        self._seen["a drafter was tried again"] += bool(off - self._engine.load.drafters_off)
        if scheduler._requests and rng.random() < 0.04:
            request = rng.choice(list(scheduler._requests.values()))
            self._seen["cancelled while it " + ("ran" if request.seat else "waited")] += 1
            self._engine.cancel(request.id)
            assert request.id not in scheduler._requests
        if scheduler._running and rng.random() < 0.06:
            request = rng.choice(scheduler._running)
            self._engine.preempt(request.id)
            self._seen["preempted when asked to"] += 1
            self._preempted.add(request.id)

    def _step(self) -> None:
        engine, scheduler, cache = self._engine, self._engine._scheduler, self._engine._scheduler.cache
        decoding = {r: len(r.history) for r in scheduler._running if len(r.history) - r.cached == 1}
        waiting = list(scheduler._waiting)
        slots = {r.id: r.slot for r in scheduler._running}
        preemptions, kept, off = scheduler.preemptions, len(cache._tree), engine.load.drafters_off
        self._target.hit.clear()
        events = engine.step()
        slots |= {r.id: r.slot for r in scheduler._running}
        for request, slot in slots.items():
            self._asked[request].hit |= slot in self._target.hit
        for request in waiting:  # it may have come in and ended in this very step
            self._asked[request.id].hit |= request.seat is None and bool(self._target.hit)
        self._seen["preempted for room"] += scheduler.preemptions - preemptions
        self._seen["gave up pages"] += len(cache._tree) < kept
        self._seen["a drafter was left alone"] += bool(engine.load.drafters_off - off)
        for request, length in decoding.items():
            still = request.seat is not None and scheduler.preemptions == preemptions
            assert not still or len(request.history) > length, "a request that decodes got nothing"
        for request in waiting:
            if request.seat is not None and request.seat.path:
                self._seen["found pages"] += 1
                self._seen["found pages of its own after a preemption"] += request.id in self._preempted
        waits = sum(not request.seat.begun for request in scheduler._running)
        self._seen["waited for another to read its prompt"] += waits
        reading = [r for r in scheduler._running if len(r.history) - r.cached > 1]
        self._seen["read a prompt in chunks"] += any(r.cached for r in reading)
        self._seen["read beside requests that decode"] += bool(reading and decoding)
        for event in events:
            asked = self._asked[event.request]
            assert asked.done is None, "something came after the end"
            asked.heard += event.token_ids
            asked.done = event.finish
            if event.finish is not None:
                self._judge(asked, event.finish)

    def _judge(self, asked: Asked, done: Completion) -> None:
        """A request ended: with the answer of plain decoding, or with the beginning of it."""
        plain, seen = asked.job.answer, self._seen
        assert done.token_ids == tuple(asked.heard), "the events do not add up"
        length = len(done.token_ids)
        assert done.token_ids == plain.token_ids[:length], "other tokens than plain decoding's"
        if done.logprobs is not None:
            assert done.logprobs == plain.logprobs[:length]
        if done.prompt_logprobs is not None:
            seen["log-probabilities of a prompt"] += 1
            told = len(done.prompt_logprobs)
            assert done.prompt_logprobs == plain.prompt_logprobs[:told]
        seen["all drafted tokens accepted"] += done.stats.drafted == done.stats.accepted > 0
        seen["none accepted"] += done.stats.drafted > 0 == done.stats.accepted
        seen["ended inside a draft"] += done.stats.passes + done.stats.accepted > done.stats.tokens
        if done.finish_reason in ("error", "cancelled"):
            seen[done.finish_reason] += 1
            assert done.finish_reason == "cancelled" or asked.hit, f"failed for nothing: {done.stop_reason}"
            return
        seen["requests ended well"] += 1
        same = ("finish_reason", "stop_reason", "text", "token_ids", "prompt_logprobs")
        for name in same:
            assert getattr(done, name) == getattr(plain, name), name

    def _check(self) -> None:
        """The books balance, and the cache holds what was committed."""
        scheduler, target = self._engine._scheduler, self._target
        cache, running = scheduler.cache, scheduler._running
        assert len(running) <= self._batch
        for queue in (running, scheduler._waiting):
            assert [r.id for r in queue] == sorted(r.id for r in queue)
        for request in running:
            cached = target._cache.get(request.slot, [])
            assert len(cached) == request.cached, "cached length is not what was committed"
            assert cached == request.history[: request.cached], "the cache holds other tokens"
            assert len(target._books.of(request.slot)) <= request.seat.claimed
        assert target._cache.keys() <= {r.slot for r in running}, "a sequence without a request"
        pages = self._check_tree(running)
        assert cache._private == sum(r.seat.claimed - len(r.seat.path) for r in running)
        assert cache._private + len(pages) <= cache._total
        assert cache._total - target.free_pages <= cache._private + len(pages), "pages nobody answers for"
        uses = Counter(pages)
        for table in target._books._tables.values():
            uses.update(table)
        assert uses == Counter(target._books._uses), "a page is lost, or was given out twice"

    def _check_tree(self, running: list[Request]) -> list[int]:
        """The ids of all pages that are kept."""
        tree, target = self._engine._scheduler.cache._tree, self._target
        users = Counter(page for request in running for page in request.seat.path)
        for request in running:
            for salt, root in tree._roots.items():
                shared = request.seat.path and request.seat.path[0] in root.below.values()
                assert not shared or salt == self._asked[request.id].salt, "pages of another salt"
        known: list[Page] = []
        texts: list[tuple[Page, tuple[int, ...]]] = [(root, ()) for root in tree._roots.values()]
        while texts:
            above, text = texts.pop()
            for page in above.below.values():
                assert target._texts[page.id] == list(page.tokens), "a page was written to"
                assert (*text, *page.tokens) in cacheable(), "kept what no request committed"
                known.append(page)
                texts.append((page, (*text, *page.tokens)))
        everything = {*known, *tree._idle, *users}  # a page that must not be found again is still there
        for page in everything:
            assert page.users == users[page]
            assert (page in tree._idle) == (page.users == 0)
        assert len(everything) == len(tree)
        assert not set(target._bad).intersection(page.id for page in known), "a bad page can be found"
        return [page.id for page in everything]


def simulate(seed: int) -> Counter[str]:
    """What happened in the simulation of this seed. Raises AssertionError where something does not hold."""
    seen: Counter[str] = Counter()
    Simulation(seed, seen).run()
    return seen
