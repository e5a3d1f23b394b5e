"""Speculative output equals plain output, token for token: over a hundred thousand answers of the table."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest

from paceline.core import Drafter, Rule, Target
from paceline.drafters import load, names
from paceline.engine import Engine
from paceline.results import Completion
from paceline.rules.match import match
from paceline.sampling import SamplingParams
from paceline.targets.native import NativeTarget
from paceline.targets.table import TableTarget
from tests.native.models import random_weights
from tests.toys import (
    ADVERSARIES,
    VOCABULARY,
    Empty,
    Known,
    Letters,
    NoiseByStep,
    Oracle,
    trusting,
)

SETTINGS = (
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.3, "min_tokens": 4},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    {"temperature": 1.0, "min_p": 0.15},
    {"temperature": 1.3, "top_k": 4},
    {"temperature": 0.9, "logit_bias": {3: 4.0, 7: -100.0}},
    {"temperature": 1.0, "min_tokens": 5},
    {"temperature": 1.0, "stop_token_ids": (2, 9)},
    {"temperature": 1.0, "stop": ("bc", "f", "dde", "kbi"), "min_tokens": 2},
    {"temperature": 0.5, "ignore_eos": True, "top_k": 6, "top_p": 0.8, "min_p": 0.02},
)
ROUNDS = {1: 120, 4: 240, 64: 960}
"""{batch size: answers per setting}."""

Job = tuple[tuple[int, ...], SamplingParams]


def jobs(answers_per_setting: int, first_seed: int) -> list[Job]:
    """Prompts of 1 to 9 tokens, lengths of 1 to 12, in every setting."""
    rng = random.Random(first_seed)
    return [
        (
            tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 9))),
            SamplingParams(
                seed=first_seed + number * len(SETTINGS) + place,
                max_tokens=max(rng.randint(1, 12), setting.get("min_tokens", 1)),
                **setting,
            ),
        )
        for number in range(answers_per_setting)
        for place, setting in enumerate(SETTINGS)
    ]


def run(
    work: Sequence[Job],
    drafter: Drafter,
    batch: int,
    *,
    rule: Rule = match,
    target: Target | None = None,
) -> list[Completion]:
    """Answer the jobs in an order of their own, and give the answers back in the jobs' order."""
    target = target or TableTarget(VOCABULARY)
    engine = Engine(
        target,
        {"drafter": drafter},
        drafter="drafter",
        tokenizer=Letters(),
        rule=rule,
        max_batch=batch,
        chunk_tokens=max(5, batch * 2),
        nodes=7 * batch,
    )
    order = random.Random(batch).sample(range(len(work)), len(work))
    done = engine.generate([work[i][0] for i in order], [work[i][1] for i in order])
    assert engine.idle
    if isinstance(target, TableTarget):
        assert not target._cache, "every sequence was released"
    return [completion for _, completion in sorted(zip(order, done, strict=True))]


@cache
def plain(batch: int) -> tuple[list[Job], list[Completion]]:
    """The work of one batch size and what plain decoding, one request at a time, makes of it."""
    work = jobs(ROUNDS[batch], first_seed=batch * 10**6)
    return work, run(work, Empty(), 1)


def what_matters(completion: Completion) -> tuple[object, ...]:
    return (completion.token_ids, completion.text, completion.finish_reason, completion.stop_reason)


def different(left: Sequence[Completion], right: Sequence[Completion]) -> int:
    return sum(what_matters(a) != what_matters(b) for a, b in zip(left, right, strict=True))


def totals(done: Sequence[Completion]) -> tuple[int, int, int]:
    """Drafted, accepted and rejected tokens."""
    drafted = sum(completion.stats.drafted for completion in done)
    accepted = sum(completion.stats.accepted for completion in done)
    return drafted, accepted, drafted - accepted


EAGER = {"suffix": "suffix:min_probability=1e-6", "ngram": "ngram:shortest=1"}
"""Options with which a drafter drafts much even in a large batch of short texts."""

DRAFTERS: dict[str, Callable[[dict[int, tuple[int, ...]]], Drafter]] = {
    **{kind.__name__: kind for kind in ADVERSARIES},
    "Empty": lambda answers: Empty(),
    **{
        name: lambda answers, name=name: load(EAGER.get(name, name), TableTarget(VOCABULARY).info)
        for name in names()
    },
}
NEVER_RIGHT, SILENT = {"AlwaysWrong"}, {"Empty", "none"}


def test_the_suite_covers_a_hundred_thousand_answers_with_drafts() -> None:
    assert len(DRAFTERS.keys() - SILENT) * len(SETTINGS) * sum(ROUNDS.values()) >= 100_000


@pytest.mark.parametrize("batch", ROUNDS)
@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_gives_the_answers_of_plain_decoding(name: str, batch: int) -> None:
    work, expected = plain(batch)
    answers = {c.seed: c.token_ids for c in expected}
    done = run(work, DRAFTERS[name](answers), batch)
    assert different(done, expected) == 0
    drafted, accepted, rejected = totals(done)
    assert (drafted > 0) == (name not in SILENT)
    assert (accepted > 0) == (name not in SILENT | NEVER_RIGHT)
    assert (rejected > 0) == (name not in SILENT)  # the oracle knows nothing past an answer's end


@pytest.mark.parametrize("name", sorted(DRAFTERS.keys() - SILENT))
def test_the_native_target_and_its_fused_draws_give_the_answers_of_plain_decoding(name: str) -> None:
    weights, work = random_weights(), jobs(15, first_seed=9 * 10**6)
    expected = run(work, Empty(), 1, target=NativeTarget(weights, threads=1))
    answers = {c.seed: c.token_ids for c in expected}
    for batch in (1, 5):
        done = run(work, DRAFTERS[name](answers), batch, target=NativeTarget(weights, threads=1))
        assert different(done, expected) == 0
        drafted, accepted, rejected = totals(done)
        assert drafted > 0
        assert rejected > 0 or name == "Oracle"
        assert (accepted > 0) == (name not in NEVER_RIGHT)


def test_requests_with_different_drafters_share_a_batch_without_a_trace() -> None:
    work, expected = plain(4)
    answers = {c.seed: c.token_ids for c in expected}
    target = TableTarget(VOCABULARY)
    drafters = {name: make(answers) for name, make in DRAFTERS.items()}
    engine = Engine(target, drafters, drafter="none", tokenizer=Letters(), max_batch=4, chunk_tokens=3)
    order = random.Random(1).sample(range(len(work)), len(work))
    chosen = [list(drafters)[i % len(drafters)] for i in order]
    done = engine.generate([work[i][0] for i in order], [work[i][1] for i in order], chosen)
    assert different(done, [expected[i] for i in order]) == 0
    assert min(totals(done)) > 0
    for name in drafters:
        drafted, accepted, _ = totals([c for c in done if c.drafter == name])
        assert (drafted > 0) == (name not in SILENT)
        assert (accepted > 0) == (name not in SILENT | NEVER_RIGHT)


@pytest.mark.parametrize("kind", [k for k in ADVERSARIES if k is not Oracle])
def test_a_rule_that_does_not_ask_the_target_is_caught(kind: type[Known]) -> None:
    work, expected = plain(4)
    done = run(work, kind({c.seed: c.token_ids for c in expected}), 4, rule=trusting)
    assert different(done, expected) > len(work) / 20


def test_noise_that_forgets_the_position_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    work, expected = plain(4)
    monkeypatch.setattr("paceline.engine.Noise", NoiseByStep)
    done = run(work, Oracle({c.seed: c.token_ids for c in expected}), 4)
    assert different(done, expected) > len(work) / 20


def test_a_target_that_keeps_a_rejected_token_is_caught() -> None:
    class Careless(TableTarget):
        def commit(self, draft, verdict):
            super().commit(draft, verdict)
            for row, slot in enumerate(draft.slots.tolist()):
                last = int(draft.tokens[draft.offsets[row + 1] - 1])
                self._cache[slot][-1] = last if draft.roots[row] >= 0 else self._cache[slot][-1]

    work, expected = plain(4)
    answers = {c.seed: c.token_ids for c in expected}
    done = run(work, DRAFTERS["HalfRight"](answers), 4, target=Careless(VOCABULARY))
    assert different(done, expected) > len(work) / 20


def test_arrivals_and_cancellations_at_any_time_leave_no_trace_in_other_answers() -> None:
    work, expected = plain(4)
    answers = {c.seed: c.token_ids for c in expected}
    rng = random.Random(2)
    target = TableTarget(VOCABULARY, cache_tokens=400)
    drafters = {name: make(answers) for name, make in DRAFTERS.items()}
    engine = Engine(target, drafters, drafter="none", tokenizer=Letters(), max_batch=6, chunk_tokens=4)
    coming = rng.sample(range(len(work)), len(work))
    places: dict[int, int] = {}
    done: dict[int, Completion] = {}
    while coming or not engine.idle:
        for _ in range(rng.choice((0, 0, 0, 1, 2, 5))):
            if coming:
                place = coming.pop()
                places[engine.submit(*work[place], rng.choice(list(drafters)))] = place
        if rng.random() < 0.05 and places:
            engine.cancel(rng.choice(list(places)[-8:]))
        done.update((places[event.request], event.finish) for event in engine.step() if event.finish)
    assert len(done) == len(work)
    cancelled = {place for place, completion in done.items() if completion.finish_reason == "cancelled"}
    assert 20 < len(cancelled) < len(work) / 2
    whole = [place for place in done if place not in cancelled]
    assert different([done[place] for place in whole], [expected[place] for place in whole]) == 0
    assert min(totals([done[place] for place in whole])) > 0
    for place in cancelled:
        assert done[place].token_ids == expected[place].token_ids[: len(done[place].token_ids)]
