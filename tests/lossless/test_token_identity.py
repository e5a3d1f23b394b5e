"""Speculative output equals plain output, token for token: over a hundred thousand answers of the table."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from paceline import policies
from paceline.bad_words import BadWords
from paceline.engine import Engine
from paceline.grammar import Matcher
from paceline.laws import Laws
from paceline.results import Completion
from paceline.scheduler import Scheduler
from paceline.targets.native import NativeTarget
from tests.discovery import RUN_MODELS, Record
from tests.lossless.identity import (
    DRAFTERS,
    NEVER_RIGHT,
    ROUNDS,
    SETTINGS,
    SILENT,
    Answers,
    Job,
    by_seed,
    different,
    jobs,
    plain,
    predicted,
    run,
    totals,
)
from tests.native.models import random_weights
from tests.toys import ADVERSARIES, Known, Letters, NoiseByStep, Oracle, SketchingTable, trusting


def runs_a_model(name: str) -> bool:
    return name.partition(":")[0] in RUN_MODELS


def without_grammar(work: Sequence[Job], done: Sequence[Completion]) -> list[Completion]:
    """The answers for which nothing is drafted but by the drafter."""
    return [completion for (_, params), completion in zip(work, done, strict=True) if params.grammar is None]


def test_the_suite_covers_a_hundred_thousand_answers_with_drafts() -> None:
    quick = [name for name in DRAFTERS.keys() - SILENT if not runs_a_model(name)]
    assert len(quick) * len(SETTINGS) * sum(ROUNDS.values()) >= 100_000


CASES = [
    pytest.param(name, batch, marks=[pytest.mark.prove] if batch > 4 and runs_a_model(name) else [])
    for name in DRAFTERS
    for batch in ROUNDS
]


@pytest.mark.parametrize(("name", "batch"), CASES)
def test_every_drafter_gives_the_answers_of_plain_decoding(
    name: str, batch: int, record_property: Record
) -> None:
    work, expected = plain(batch)
    done = run(work, name, batch, answers=by_seed(expected))
    assert different(done, expected) == 0
    drafted, accepted, rejected = totals(without_grammar(work, done))
    record_property("answers", len(done))
    record_property("tokens accepted", accepted)
    record_property("tokens rejected", rejected)
    assert (drafted > 0) == (name not in SILENT)
    assert (accepted > 0) == (name not in SILENT | NEVER_RIGHT)
    assert (rejected > 0) == (name not in SILENT)  # the oracle knows nothing past an answer's end


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["RandomTrees", "OverBudget", "auto", "markov:widths=2x2x1"])
@pytest.mark.parametrize("policy", policies.names())
def test_every_policy_gives_the_answers_of_plain_decoding(policy: str, name: str, batch: int) -> None:
    work, expected = plain(batch)
    done = run(work, name, batch, answers=by_seed(expected), policy=policy)
    assert different(done, expected) == 0
    assert totals(done)[0] > 0


@pytest.mark.parametrize("name", sorted(DRAFTERS.keys() - SILENT))
def test_the_native_target_and_its_fused_draws_give_the_answers_of_plain_decoding(name: str) -> None:
    weights, work = random_weights(), jobs(15, first_seed=9 * 10**6)
    expected = run(work, target=NativeTarget(weights, threads=1))
    for batch in (1, 5):
        target = NativeTarget(weights, threads=1)
        done = run(work, name, batch, answers=by_seed(expected), target=target)
        assert different(done, expected) == 0
        drafted, accepted, rejected = totals(without_grammar(work, done))
        assert drafted > 0
        assert rejected > 0 or name in {"Oracle", "sparse"}  # it sees all of texts as short as these
        assert (accepted > 0) == (name not in NEVER_RIGHT)


def test_requests_with_different_drafters_share_a_batch_without_a_trace() -> None:
    work, expected = plain(4)
    target = SketchingTable()
    drafters = {name: make(by_seed(expected), target) for name, make in DRAFTERS.items()}
    engine = Engine(target, drafters, drafter="none", tokenizer=Letters(), max_batch=4, chunk_tokens=3)
    order = random.Random(1).sample(range(len(work)), len(work))
    # By place in the shuffled order, or a drafter would meet the same few settings again and again.
    chosen = [list(drafters)[place % len(drafters)] for place in range(len(order))]
    done = engine.generate(
        [work[i][0] for i in order],
        [work[i][1] for i in order],
        chosen,
        prediction=[predicted(by_seed(expected), work[i][1]) for i in order],
    )
    assert different(done, [expected[i] for i in order]) == 0
    assert min(totals(done)) > 0
    free = without_grammar([work[i] for i in order], done)
    for name in drafters:
        drafted, accepted, _ = totals([c for c in free if c.drafter == name])
        assert (drafted > 0) == (name not in SILENT)
        assert (accepted > 0) == (name not in SILENT | NEVER_RIGHT)


@pytest.mark.parametrize("kind", [k for k in ADVERSARIES if k is not Oracle])
def test_a_rule_that_does_not_ask_the_target_is_caught(kind: type[Known]) -> None:
    work, expected = plain(4)
    done = run(work, kind.__name__, 4, answers=by_seed(expected), rule=trusting)
    assert different(done, expected) > len(work) / 20


def test_noise_that_forgets_the_position_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    work, expected = plain(4)
    monkeypatch.setattr("paceline.engine.Noise", NoiseByStep)
    done = run(work, "Oracle", 4, answers=by_seed(expected))
    assert different(done, expected) > len(work) / 20


def test_a_target_that_keeps_a_rejected_token_is_caught() -> None:
    class Careless(SketchingTable):
        def commit(self, draft, verdict):
            super().commit(draft, verdict)
            for row, slot in enumerate(draft.slots.tolist()):
                last = int(draft.tokens[draft.offsets[row + 1] - 1])
                self._cache[slot][-1] = last if draft.roots[row] >= 0 else self._cache[slot][-1]

    work, expected = plain(4)
    done = run(work, "HalfRight", 4, answers=by_seed(expected), target=Careless())
    assert different(done, expected) > len(work) / 20


def test_arrivals_cancellations_and_preemptions_at_any_time_leave_no_trace_in_answers() -> None:
    work, expected = plain(4)
    rng = random.Random(2)
    preempted: set[int] = set()
    target = SketchingTable(cache_tokens=400)
    answers = by_seed(expected)
    drafters = {name: make(answers, target) for name, make in DRAFTERS.items()}
    engine = Engine(target, drafters, drafter="none", tokenizer=Letters(), max_batch=6, chunk_tokens=4)
    coming = rng.sample(range(len(work)), len(work))
    places: dict[int, int] = {}
    done: dict[int, Completion] = {}
    while coming or not engine.idle:
        for _ in range(rng.choice((0, 0, 0, 1, 2, 5))):
            if coming:
                place = coming.pop()
                prediction = predicted(answers, work[place][1])
                drafter = rng.choice(list(drafters))
                places[engine.submit(*work[place], drafter, prediction=prediction)] = place
        if rng.random() < 0.05 and places:
            engine.cancel(rng.choice(list(places)[-8:]))
        if rng.random() < 0.3 and places:
            request = rng.choice(list(places)[-8:])
            engine.preempt(request)
            preempted.add(places[request])
        done.update((places[event.request], event.finish) for event in engine.step() if event.finish)
    assert not target._cache
    assert len(done) == len(work)
    cancelled = {
        place
        for place, completion in done.items()
        if completion.finish_reason == "cancelled" and completion.stop_reason is None
    }
    assert 20 < len(cancelled) < len(work) / 2
    whole = [place for place in done if place not in cancelled]
    assert len(preempted.intersection(whole)) > 100
    assert different([done[place] for place in whole], [expected[place] for place in whole]) == 0
    assert min(totals([done[place] for place in whole])) > 0
    for place in cancelled:
        assert done[place].token_ids == expected[place].token_ids[: len(done[place].token_ids)]


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(
    "name", ["Oracle", "RandomTrees", "suffix", "markov", "lookahead", "prediction", "draft", "exit"]
)
def test_preempting_every_request_again_and_again_changes_no_answer(name: str, batch: int) -> None:
    work = jobs(8, first_seed=7 * 10**6)
    expected = run(work)
    done = preempting(work, name, batch, by_seed(expected))
    assert different(done, expected) == 0
    assert min(totals(done)) > 0 or name == "Oracle"


def preempting(work: list[Job], name: str, batch: int, answers: Answers) -> list[Completion]:
    """Answer the jobs, throwing requests out in half of all steps."""
    rng, target = random.Random(batch), SketchingTable()
    drafters = {"drafter": DRAFTERS[name](answers, target)}
    engine = Engine(target, drafters, drafter="drafter", tokenizer=Letters(), max_batch=batch, chunk_tokens=5)
    ids = [engine.submit(*job, "drafter", prediction=predicted(answers, job[1])) for job in work]
    done: dict[int, Completion] = {}
    while not engine.idle:
        running = [request.id for request in engine._scheduler._running]
        if running and rng.random() < 0.5:
            engine.preempt(rng.choice(running))
        done.update((event.request, event.finish) for event in engine.step() if event.finish)
    return [done[request] for request in ids]


def test_a_preemption_that_loses_the_pending_token_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Scheduler.preempt

    def forgetful(self: Scheduler, request: int) -> list[int]:
        found = self._requests.get(request)
        if found is not None and len(found.history) > found.prompt:
            found.history.pop()
        return original(self, request)

    work = jobs(8, first_seed=7 * 10**6)
    expected = run(work)
    monkeypatch.setattr(Scheduler, "preempt", forgetful)
    done = preempting(work, "HalfRight", 4, by_seed(expected))
    assert different(done, expected) > len(work) / 20


BROKEN = {
    "bad words that overlook the draft's path": (
        BadWords, "after", lambda original: lambda self, path: original(self, ()),
    ),
    "a grammar that overlooks the draft's path": (
        Matcher, "after", lambda original: lambda self, path: original(self, ()),
    ),
    "logprobs of the place before": (
        Laws, "logprobs", lambda original: lambda self, node, token, top: original(
            self, max(self._parents[node], self._draft.roots[0]), token, top
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_control_that_overlooks_the_path_is_caught(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken = BROKEN[what]
    work, expected = plain(1)
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    assert different(run(work), expected) == 0, "without drafts it makes no difference"
    done = run(work, "HalfRight", answers=by_seed(expected))
    assert different(done, expected) > len(work) / 100
    assert min(totals(done)) > 0


def test_a_grammar_that_keeps_a_drafts_tokens_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class NeverBack:
        def __init__(self, state):
            self.state = state

        def __getattr__(self, name):
            return getattr(self.state, name)

        def rollback(self, count):
            return True

    original = Matcher.__init__
    monkeypatch.setattr(
        Matcher, "__init__", lambda self, begin, spoken: original(self, lambda: NeverBack(begin()), spoken)
    )
    work, expected = plain(1)
    assert different(run(work), expected) == 0
    done = run(work, "HalfRight", answers=by_seed(expected))
    assert different(done, expected) > len(work) / 100
