"""Work for the proofs that speculative output equals plain output, and the drafters that it is done with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import policies
from paceline.core import Drafter, Rule, Target
from paceline.drafters import names
from paceline.engine import Engine
from paceline.grammar import Grammar
from paceline.results import Completion
from paceline.rules.match import match
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests import discovery
from tests.toys import ADVERSARIES, VOCABULARY, Empty, Letters, SketchingTable


def slanted(tokens: Sequence[int], logits: NDArray[Any]) -> NDArray[Any]:
    """A user's own logits processor: what it does depends on the tokens before."""
    return logits + sum(tokens) % 3 * np.linspace(0, 4, VOCABULARY)[np.arange(len(logits)) % VOCABULARY]


SETTINGS = (
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.3, "min_tokens": 4},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    {"temperature": 1.0, "min_p": 0.15},
    {"temperature": 1.3, "top_k": 4},
    {"temperature": 0.9, "logit_bias": {3: 4.0, 7: -100.0}},
    {"temperature": 1.0, "min_tokens": 5},
    {"temperature": 1.0, "logits_processor": slanted},
    {"temperature": 1.0, "stop_token_ids": (2, 9)},
    {"temperature": 1.0, "stop": ("bc", "f", "dde", "kbi"), "min_tokens": 2},
    {"temperature": 0.5, "ignore_eos": True, "top_k": 6, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.0, "bad_words": ("b", "de", (4, 4), (7, 8, 9), "gf"), "logprobs": 3},
    {"temperature": 0.8, "grammar": Grammar.regex("[b-l]{0,3}(bcdef|ghij)+k?"), "logprobs": 0},
    {"temperature": 1.0, "grammar": Grammar.lark("start: /[b-e]/ | /[f-h]/ start /[i-l]/"), "top_k": 5},
    {
        "temperature": 0.9,
        "grammar": Grammar.regex("(bcd|efg|hijk){2,}"),
        "bad_words": ("ij", "dh"),  # contradicts: some answers come to a point where nothing is possible
        "stop": ("de",),
        "frequency_penalty": 0.5,
        "logprobs": 20,
    },
)
ROUNDS = {1: 24, 4: 90, 64: 280}
"""{batch size: answers per setting}."""

Answers = Mapping[int, Sequence[int]]
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
    drafter: str = "none",
    batch: int = 1,
    *,
    answers: Answers = MappingProxyType({}),
    rule: Rule = match,
    policy: str = "fixed",
    target: Target | None = None,
) -> list[Completion]:
    """Answer the jobs in an order of their own, and give the answers back in the jobs' order."""
    target = target or SketchingTable()
    engine = Engine(
        target,
        {"drafter": DRAFTERS[drafter](answers, target)},
        drafter="drafter",
        tokenizer=Letters(),
        rule=rule,
        policy=policies.load(policy),
        max_batch=batch,
        chunk_tokens=max(5, batch * 2),
        nodes=7 * batch,
    )
    order = random.Random(batch).sample(range(len(work)), len(work))
    done = engine.generate(
        [work[i][0] for i in order],
        [work[i][1] for i in order],
        "drafter",
        prediction=[predicted(answers, work[i][1]) for i in order],
    )
    assert engine.idle
    assert engine.load.draft_failures == {}
    if isinstance(target, TableTarget):
        assert not target._cache, "every sequence was released"
    return [completion for _, completion in sorted(zip(order, done, strict=True))]


@cache
def plain(batch: int) -> tuple[list[Job], list[Completion]]:
    """The work of one batch size and what plain decoding, one request at a time, makes of it."""
    work = jobs(ROUNDS[batch], first_seed=batch * 10**6)
    return work, run(work)


def what_matters(completion: Completion) -> tuple[object, ...]:
    """Tokens, text, how it ended, and log-probabilities to the last bit."""
    c = completion
    return (c.token_ids, c.text, c.finish_reason, c.stop_reason, c.logprobs)


def different(left: Sequence[Completion], right: Sequence[Completion]) -> int:
    return sum(what_matters(a) != what_matters(b) for a, b in zip(left, right, strict=True))


def by_seed(done: Sequence[Completion]) -> Answers:
    return {completion.seed: completion.token_ids for completion in done}


def totals(done: Sequence[Completion]) -> tuple[int, int, int]:
    """Drafted, accepted and rejected tokens."""
    drafted = sum(completion.stats.drafted for completion in done)
    accepted = sum(completion.stats.accepted for completion in done)
    return drafted, accepted, drafted - accepted


def predicted(answers: Answers, params: SamplingParams) -> list[int]:
    """What a caller might predict: the plain answer with tokens changed, left out and put in."""
    rng = random.Random(params.seed)
    prediction: list[int] = []
    for token in answers.get(params.seed or 0, ()):
        prediction += rng.choices(
            ([token], [rng.randrange(VOCABULARY)], [], [token, rng.randrange(VOCABULARY)]), (7, 1, 1, 1)
        )[0]
    return prediction


MORE = (
    "markov:widths=2x2x1",
    "markov:widths=3x1,drawn=without_replacement",
    "suffix:min_probability=1e-6+markov:widths=2x2x1+ngram:shortest=1",
    "draft:model=near,widths=3x2,min_probability=0",
    "draft:model=near,drafter=ngram:shortest=1,min_probability=0",
    "draft:model=near,vocabulary=shared,min_probability=0",
    "draft:model=near,ahead=2,min_probability=0",
    "draft:model=near,ahead=3,wait=false,widths=2x1,min_probability=0",
)


def loading(spec: str) -> Callable[[Answers, Target], Drafter]:
    return lambda answers, target: discovery.drafter(spec, target)


DRAFTERS: dict[str, Callable[[Answers, Target], Drafter]] = {
    **{kind.__name__: lambda answers, target, kind=kind: kind(answers) for kind in ADVERSARIES},
    "Empty": lambda answers, target: Empty(),
    **{name: loading(name) for name in names()},
    **{spec: loading(spec) for spec in MORE},
}
"""Every drafter there is, made for a target and, where it cheats, from the plain answers by seed."""
NEVER_RIGHT, SILENT = {"AlwaysWrong"}, {"Empty", "none"}
