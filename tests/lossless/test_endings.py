"""Where an answer ends does not depend on how many tokens a step brings: every small case there is.

Each case is answered by plain decoding, one token a step, and with drafts of every length up to nine that are
always right, mostly right or never right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any

import pytest

from paceline.drafters.none import Plain
from paceline.engine import Engine
from paceline.laws import Controls
from paceline.request import Growth, Request
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.toys import VOCABULARY, AlwaysWrong, HalfRight, Known, Letters, Oracle

LENGTH = 10
SEEDS = range(3)
DEPTHS = (1, 2, 4, 9)

Case = Mapping[str, Any]
"""Fields of SamplingParams, and `eos_ids` and `max_positions` of the engine."""


def answer(seed: int, case: Case, drafter: Known | None = None, nodes: int = 1) -> Completion:
    fields = {"max_tokens": LENGTH, "temperature": 1.0, **case}
    engine = Engine(
        TableTarget(VOCABULARY, seed=3, max_positions=fields.pop("max_positions", 512)),
        {"d": drafter or Plain()},
        drafter="d",
        tokenizer=Letters(),
        eos_ids=fields.pop("eos_ids", frozenset()),
        nodes=nodes,
    )
    return engine.generate([1, 2], SamplingParams(seed=seed, **fields))[0]


@cache
def full(seed: int) -> tuple[tuple[int, ...], str]:
    """The answer that nothing ends before LENGTH, and its text."""
    done = answer(seed, {})
    return done.token_ids, done.text


def ending_tokens(seed: int) -> Iterator[Case]:
    """An end-of-sequence or a stop token at every place of the draft."""
    for token in full(seed)[0]:
        yield {"eos_ids": frozenset({token})}
        yield {"stop_token_ids": (token,)}


def lengths(seed: int) -> Iterator[Case]:
    """Fewer tokens left than drafted."""
    yield from ({"max_tokens": length} for length in range(1, LENGTH + 1))


def contexts(seed: int) -> Iterator[Case]:
    """The context ends inside the draft."""
    yield from ({"max_positions": 2 + length} for length in range(1, LENGTH + 1))


def minima(seed: int) -> Iterator[Case]:
    """No end before some place, though tokens and strings there would be one."""
    tokens, text = full(seed)
    for least, token in product(range(LENGTH + 1), sorted(set(tokens[:4]))):
        yield {"min_tokens": least, "eos_ids": frozenset({token})}
        yield {"min_tokens": least, "stop_token_ids": (token, (token + 1) % VOCABULARY)}
    for least, place in product(range(LENGTH + 1), range(4)):
        yield {"min_tokens": least, "stop": (text[place : place + 2],)}


def stop_strings(seed: int) -> Iterator[Case]:
    """Strings of one to four tokens at every place: they begin in one step and end in another."""
    text = full(seed)[1]
    for place, length in product(range(LENGTH), (1, 2, 3, 4)):
        yield {"stop": (text[place : place + length],)}


def races(seed: int) -> Iterator[Case]:
    """Two stop strings, an ending token and the length, each at several places: the first one wins."""
    tokens, text = full(seed)
    for place, end, length in product((1, 3, 5), range(0, LENGTH, 2), range(2, LENGTH, 2)):
        yield {
            "stop": (text[place : place + 2], text[place + 1 : place + 4]),
            "eos_ids": frozenset({tokens[end]}),
            "max_tokens": length,
        }


FAMILIES = (ending_tokens, lengths, contexts, minima, stop_strings, races)
DRAFTERS = {"right": Oracle, "mostly right": HalfRight, "wrong": AlwaysWrong}


def compare(family: Callable[[int], Iterator[Case]], kind: type[Known]) -> tuple[int, int, int, int]:
    """Cases that differ from plain decoding, and drafted, accepted and rejected tokens of all cases."""
    differing = drafted = accepted = 0
    for seed in SEEDS:
        for number, case in enumerate(family(seed)):
            expected = plain(family, seed, number)
            beyond = answer(seed, {**case, "eos_ids": frozenset(), "stop_token_ids": (), "stop": ()})
            known = {seed: (*expected.token_ids, *beyond.token_ids[len(expected.token_ids) :])}
            for nodes in DEPTHS:
                done = answer(seed, case, kind(known), nodes)
                differing += what_matters(done) != what_matters(expected)
                drafted += done.stats.drafted
                accepted += done.stats.accepted
    return differing, drafted, accepted, drafted - accepted


@cache
def plain(family: Callable[[int], Iterator[Case]], seed: int, number: int) -> Completion:
    return answer(seed, list(family(seed))[number])


def what_matters(done: Completion) -> tuple[object, ...]:
    return done.token_ids, done.text, done.finish_reason, done.stop_reason, done.stats.tokens


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_an_answer_ends_where_plain_decoding_ends_it(
    family: Callable[[int], Iterator[Case]], kind: str
) -> None:
    differing, drafted, accepted, rejected = compare(family, DRAFTERS[kind])
    assert differing == 0
    assert drafted > 0
    assert (accepted > 0) == (kind != "wrong")
    # Of what is right, the part behind the end is rejected; no draft goes past a length that is known.
    assert (rejected > 0) == (kind != "right" or family not in (lengths, contexts))


def test_plain_decoding_ends_at_the_first_of_all_ends() -> None:
    """By hand, for the races: tokens are letters here, so that places in text and tokens agree."""
    reasons = set()
    for seed in SEEDS:
        tokens, text = full(seed)
        for number, case in enumerate(races(seed)):
            done = plain(races, seed, number)
            (end_token,) = case["eos_ids"]
            ends = [(case["max_tokens"], 3, "length", None, case["max_tokens"])]
            ends.append((tokens.index(end_token) + 1, 1, "stop", end_token, tokens.index(end_token)))
            for stop in case["stop"]:
                ends.append((text.index(stop) + len(stop), 2, "stop", stop, text.index(stop)))
            # Of two stop strings that end together the longer one, which begins first, counts.
            length, _, reason, stop_reason, cut = min(ends, key=lambda end: (end[0], end[1], end[4]))
            if 5 in tokens[:length]:
                continue  # a token that waits for the next one: where strings end is not so plain
            assert (len(done.token_ids), done.finish_reason, done.stop_reason, done.text) == (
                length, reason, stop_reason, text[:cut],
            )  # fmt: skip
            reasons.add(type(stop_reason))
    assert reasons == {int, str, type(None)}


Grow = Callable[[Request, list[int]], Growth]


def keeps_the_rest(original: Grow) -> Grow:
    """Tokens behind the end of the answer stay in it."""

    def grow(self: Request, tokens: list[int]) -> Growth:
        everything = list(tokens)
        growth = original(self, tokens)
        rest = everything[len(tokens) :]
        tokens += rest
        self.history += rest
        return growth

    return grow


def looks_at_the_last_token_only(original: Grow) -> Grow:
    """An ending token in the middle of a step goes unseen."""

    def grow(self: Request, tokens: list[int]) -> Growth:
        ending = self.controls.ending
        if tokens[-1] not in ending:
            self.controls.ending = frozenset()
        growth = original(self, tokens)
        self.controls.ending = ending
        return growth

    return grow


def forgets_between_steps(original: Grow) -> Grow:
    """A stop string that began in the step before goes unseen."""

    def grow(self: Request, tokens: list[int]) -> Growth:
        held, self.transcript._held = self.transcript._held, ""
        growth = original(self, tokens)
        return growth._replace(text=held + growth.text)

    return grow


def counts_steps(original: Grow) -> Grow:
    """min_tokens is taken for steps."""

    def grow(self: Request, tokens: list[int]) -> Growth:
        self.transcript._read -= len(tokens) - 1
        return original(self, tokens)

    return grow


def one_too_many(original: Grow) -> Grow:
    """A draft may go one token past the limit."""

    def grow(self: Request, tokens: list[int]) -> Growth:
        self.limit += len(tokens) > 1
        return original(self, tokens)

    return grow


@pytest.mark.parametrize(
    ("broken", "family"),
    [
        (keeps_the_rest, ending_tokens),
        (keeps_the_rest, stop_strings),
        (keeps_the_rest, races),
        (looks_at_the_last_token_only, ending_tokens),
        (forgets_between_steps, stop_strings),
        (counts_steps, minima),
        (one_too_many, lengths),
        (one_too_many, contexts),
    ],
    ids=lambda part: part.__name__,
)
def test_an_end_that_depends_on_the_steps_is_caught(
    broken: Callable[[Grow], Grow],
    family: Callable[[int], Iterator[Case]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in SEEDS:
        for number, _ in enumerate(family(seed)):
            plain(family, seed, number)  # before anything is broken
    monkeypatch.setattr(Request, "grow", broken(Request.grow))
    assert compare(family, Oracle)[0] > 0


def test_min_tokens_counted_at_the_root_only_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Controls.adjust
    monkeypatch.setattr(
        Controls, "adjust", lambda self, x, answered, path: original(self, x, answered - len(path), path)
    )
    assert compare(minima, Oracle)[0] > 0
