"""On the real kernels: the same bits with and without pages that others read, in any company."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from paceline.engine import Engine
from paceline.kernels import ISA_VARIABLE
from paceline.models.config import ModelConfig
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.targets.native import NativeTarget
from tests.discovery import drafter
from tests.lossless.identity import different
from tests.native.models import CONFIG, random_weights
from tests.toys import Signs

WINDOWED = replace(CONFIG, window=24, global_every=2, name="tiny random with windows")


def prompts(count: int) -> list[list[int]]:
    """Texts of up to 70 tokens that begin alike, and some that do not."""
    rng = random.Random(3)
    common = [rng.randrange(CONFIG.vocab_size) for _ in range(64)]
    tails = ([rng.randrange(CONFIG.vocab_size) for _ in range(rng.randint(1, 6))] for _ in range(count))
    return [[*common[: rng.choice((0, 17, 40, 64))], *tail] for tail in tails]


def answers(
    sharing: bool, names: tuple[str, ...], batch: int, config: ModelConfig = CONFIG, count: int = 16
) -> tuple[list[Completion], int]:
    """The answers to all prompts, and how many tokens were found."""
    target = NativeTarget(random_weights(config=config), threads=1, cache_tokens=640)
    target.info = replace(target.info, shares_pages=sharing)
    engine = Engine(
        target,
        {name: drafter(name, target) for name in names},
        drafter=names[0],
        tokenizer=Signs(CONFIG.vocab_size),
        max_batch=batch,
        chunk_tokens=24,
    )
    wanted = prompts(count)
    params = [
        SamplingParams(
            seed=seed, max_tokens=18, temperature=(0.0, 0.9)[seed % 2], logprobs=2, ignore_eos=True
        )
        for seed in range(len(wanted))
    ]
    done = engine.generate(wanted, params, [names[seed % len(names)] for seed in range(len(wanted))])
    assert engine.load.draft_failures == {}
    load = engine.load
    assert load.cache_tokens_used == 0
    return done, load.prefix_hit_tokens


@pytest.mark.parametrize(
    ("isa", "config", "count"),
    [(None, CONFIG, 16), (None, WINDOWED, 16), ("reference", CONFIG, 5)],
    ids=["compiled", "compiled, sliding windows", "reference"],
)
def test_answers_and_their_log_probabilities_are_the_same_to_the_bit_with_shared_pages(
    isa: str | None, config: ModelConfig, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isa is not None:
        monkeypatch.setenv(ISA_VARIABLE, isa)
    expected, none = answers(False, ("none",), 1, config, count)
    assert none == 0
    for batch in (1, 3):
        done, found = answers(True, ("none", "recycling", "markov"), batch, config, count)
        assert different(done, expected) == 0
        assert [c.prompt_logprobs for c in done] == [c.prompt_logprobs for c in expected]
        assert found > 0
        assert sum(completion.stats.accepted for completion in done) > 0


def test_pages_that_hold_other_tokens_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = answers(False, ("none",), 1)
    adopt = NativeTarget.adopt
    monkeypatch.setattr(NativeTarget, "adopt", lambda self, slot, pages: adopt(self, slot, pages[::-1]))
    done, _ = answers(True, ("none",), 1)
    assert different(done, expected) > 3
