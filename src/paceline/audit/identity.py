"""Whether speculation gives plain decoding's very answers, and what the first difference looks like."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from paceline.audit.referee import Referee
from paceline.audit.subject import Question, Subject
from paceline.engine import Engine
from paceline.results import Completion
from paceline.sampling import SamplingParams

SHOWN = 10
"""Differences that a report describes; all are counted."""

Advance = Callable[[int], None]


class Request(NamedTuple):
    """One answer that is asked for."""

    question: Question
    params: SamplingParams


@dataclass(slots=True)
class Counts:
    """How the drafts fared."""

    answers: int = 0
    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0

    def add(self, done: Completion) -> None:
        """Count an answer."""
        stats = done.stats
        self.answers += 1
        self.tokens += stats.tokens
        self.passes += stats.passes
        self.drafted += stats.drafted
        self.accepted += stats.accepted
        self.rejected += stats.drafted - stats.accepted

    def missing(self) -> str | None:
        """What did not happen, without which an audit shows nothing."""
        for number, what in (
            (self.drafted, "drafted"),
            (self.accepted, "accepted"),
            (self.rejected, "rejected"),
        ):
            if not number:
                return f"no token was {what}"
        return None


@dataclass(slots=True)
class Identity:
    """The outcome. differences: the first ones; different: their number; faults: answers that end wrongly."""

    counts: Counts = field(default_factory=Counts)
    different: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self.counts), "different": self.different, "differences": self.differences}


class Stuck(Exception):
    """The engine did not finish its requests within the steps that they can take."""


def answers(engine: Engine, requests: Sequence[Request], advance: Advance) -> list[Completion]:
    """All answers, in the order of the requests. Raises Stuck if the engine goes on without end.

    The prompt stands in for a prediction, for drafters that want one.
    """
    places = {}
    for place, request in enumerate(requests):
        tokens = request.question.tokens
        places[engine.submit(tokens, request.params, engine.drafter, prediction=tokens)] = place
    done: dict[int, Completion] = {}
    left = sum(len(request.question.tokens) + request.params.max_tokens + 2 for request in requests)
    while len(done) < len(requests):
        if not left:
            raise Stuck(f"{len(requests) - len(done)} of {len(requests)} answers have no end")
        left -= 1
        for event in engine.step():
            if event.finish is not None:
                done[places[event.request]] = event.finish
                advance(1)
    return [done[place] for place in range(len(requests))]


def shuffled(engine: Engine, requests: Sequence[Request], seed: int, advance: Advance) -> list[Completion]:
    """As `answers`, but asked for in another order, so that different requests share steps."""
    order = list(range(len(requests)))
    random.Random(seed).shuffle(order)
    found = answers(engine, [requests[place] for place in order], advance)
    done = dict(zip(order, found, strict=True))
    return [done[place] for place in range(len(requests))]


def compare(
    plain: Sequence[Completion],
    other: Sequence[Completion],
    requests: Sequence[Request],
    run: str,
    subject: Subject,
    referee: Referee,
    into: Identity,
) -> None:
    """Compare answers to the same requests. run: how the others were made, for the report."""
    for left, right, request in zip(plain, other, requests, strict=True):
        into.counts.add(right)
        what = _difference(left, right)
        if what is None:
            continue
        into.different += 1
        if len(into.differences) < SHOWN:
            into.differences.append(
                {
                    "prompt": request.question.id,
                    "run": run,
                    "seed": request.params.seed,
                    **what,
                    **_gaps(left, right, what, request, subject, referee),
                }
            )


def _difference(plain: Completion, other: Completion) -> dict[str, Any] | None:
    for position, (left, right) in enumerate(zip(plain.token_ids, other.token_ids, strict=False)):
        if left != right:
            return {"kind": "token", "position": position, "plain": left, "speculative": right}
    differences: tuple[tuple[str, Any, Any], ...] = (
        ("length", len(plain.token_ids), len(other.token_ids)),
        ("finish reason", plain.finish_reason, other.finish_reason),
        ("stop reason", plain.stop_reason, other.stop_reason),
        ("text", plain.text, other.text),
        ("log-probabilities", len(plain.logprobs or ()), len(other.logprobs or ())),
    )
    for kind, ours, theirs in differences:
        if ours != theirs:
            return {"kind": kind, "plain": ours, "speculative": theirs}
    pairs = zip(plain.logprobs or (), other.logprobs or (), strict=True)
    for position, (one, another) in enumerate(pairs):
        if one != another:
            kind = f"log-probabilities at position {position}"
            return {"kind": kind, "plain": asdict(one), "speculative": asdict(another)}
    return None


def _gaps(
    plain: Completion,
    other: Completion,
    what: dict[str, Any],
    request: Request,
    subject: Subject,
    referee: Referee,
) -> dict[str, Any]:
    """How far the two tokens are apart in the referee's reckoning, and the first two of all."""
    if what["kind"] != "token":
        return {}
    prompt, upto = request.question.tokens, what["position"] + 1
    ours, theirs = (
        list(referee.reckon(prompt, done.token_ids[:upto], request.params, plain.seed))[-1]
        for done in (plain, other)
    )
    return {
        "texts": [subject.spell(what["plain"]), subject.spell(what["speculative"])],
        "gap": _finite(theirs.gap - ours.gap),
        "top_two": _finite(ours.top_two),
        "referee": ours.drawn,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: a token that is impossible, or neither possible."""
    return value if math.isfinite(value) else None


def check_plain(
    plain: Sequence[Completion], requests: Sequence[Request], referee: Referee, advance: Advance
) -> dict[str, Any]:
    """Plain decoding against the referee: every token and log-probability, and where each answer ends."""
    wrong: list[str] = []
    tokens = 0
    for done, request in zip(plain, requests, strict=True):
        prompt = request.question.tokens
        tokens += len(done.token_ids)
        for fault in (referee.wrong_end(prompt, done, request.params), referee.wrong_logprobs(prompt, done)):
            if fault is not None:
                wrong.append(f"the answer to prompt {request.question.id} {fault}")
        for position, reckoning in enumerate(
            referee.reckon(prompt, done.token_ids, request.params, done.seed)
        ):
            if reckoning.gap != 0:
                wrong.append(
                    f"prompt {request.question.id}, position {position}: plain decoding took token "
                    f"{done.token_ids[position]}, the reference draws {reckoning.drawn} "
                    f"(ahead by {reckoning.gap:.3g})"
                )
                break
        advance(1)
    return {"answers": len(plain), "tokens": tokens, "wrong": len(wrong), "faults": wrong[:SHOWN]}
