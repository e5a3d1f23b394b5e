"""SmolLM2-135M on the native kernels: speculative answers equal plain ones, token for token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from paceline.core import Drafter
from paceline.drafters import load, names
from paceline.engine import Engine
from paceline.pretrained import offers
from paceline.results import Completion
from paceline.sampling import SamplingParams
from tests import dflash, dflash2, dspark, eagle3, heads, mtp, pads, peagle, redrafter, tasks
from tests.discovery import RUN_MODELS, Record, drafter
from tests.real_model import MODEL, prompts, target, tokenizer
from tests.toys import ADVERSARIES, trusting

pytestmark = pytest.mark.model

SETTINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
    "penalties": {
        "temperature": 1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
    },
}
DRAFTERS = [name for name in names() if name != "none"]
EAGER = {name: f"{name}:min_probability=0.01" for name in ("datastore", "recycling")}
"""Options with which a drafter that is rarely sure drafts in a batch too."""
BY_NAME = {adversary.__name__: adversary for adversary in ADVERSARIES}
HELPFUL = {
    "draft",
    "ngram",
    "prediction",
    "skip",
    "slem",
    "sparse",
    "suffix",
    "Oracle",
    "HalfRight",
    "RandomTrees",
    "OverBudget",
}


COMPANIONS = {"draft", "slem"}
"""Drafters that need another model."""

SAME = {"draft", "sparse"}
"""These say what the target says: a draft model that is the target, a cache whose every token is seen."""


def make(name: str, answers: dict[int, Sequence[int]]) -> Drafter:
    if name in BY_NAME:
        return BY_NAME[name](answers)
    if name == "datastore":
        return drafter(EAGER[name], target(), text())
    if name in UNTRAINED:
        with TemporaryDirectory() as folder:
            spec = f"{name}:model={UNTRAINED[name](Path(folder))},min_probability=0"
            return load(spec, target().info, **offers(target(), tokenizer()))
    spec = f"{name}:model={MODEL}" if name in COMPANIONS else EAGER.get(name, name)
    return load(spec, target().info, **offers(target(), tokenizer()))


def _heads(kind: str) -> Callable[[Path], Path]:
    weights = replace(heads.SMOLLM2, kind=kind)
    return lambda folder: heads.folder_of(heads.random_heads(weights), folder)


UNTRAINED: dict[str, Callable[[Path], Path]] = {
    "dflash": lambda folder: dflash.folder_of(dflash.random_drafter(dflash.SMOLLM2), folder),
    "dflash2": lambda folder: dflash2.folder_of(dflash2.random_drafter(dflash2.SMOLLM2), folder),
    "dspark": lambda folder: dspark.folder_of(dspark.random_drafter(dspark.SMOLLM2), folder),
    "eagle3": lambda folder: eagle3.folder_of(eagle3.random_drafter(eagle3.SMOLLM2), folder),
    "hydra": _heads("hydra"),
    "medusa": _heads("medusa"),
    "mtp": lambda folder: mtp.folder_of(mtp.random_drafter(mtp.SMOLLM2), folder),
    "pads": lambda folder: pads.folder_of(pads.random_pads(pads.SMOLLM2), folder),
    "peagle": lambda folder: peagle.folder_of(peagle.random_drafter(peagle.SMOLLM2), folder),
    "redrafter": lambda folder: redrafter.folder_of(redrafter.random_drafter(redrafter.SMOLLM2), folder),
    "tasks": lambda folder: tasks.folder_of(tasks.tasks_of(eagle3.random_drafter(eagle3.SMOLLM2)), folder),
}
"""Drafters that need a folder, and one of this target's size with random weights."""


@cache
def text() -> tuple[int, ...]:
    """The prompts, one behind the other, for drafters that draw on a text."""
    return tuple(tokenizer().encode("\n".join(chat[0]["content"] for chat in prompts(72))))


def predicted(answers: Sequence[Completion]) -> list[list[int]]:
    """Plain answers with every seventh token left out."""
    return [[token for i, token in enumerate(c.token_ids) if i % 7 != 3] for c in answers]


def answer(
    drafter: Drafter,
    params: Sequence[SamplingParams],
    batch: int,
    predictions: Sequence[Sequence[int]] | None = None,
    **options: object,
) -> list[Completion]:
    engine = Engine(
        target(),
        {"d": drafter},
        drafter="d",
        tokenizer=tokenizer(),
        max_batch=batch,
        share_prefixes=False,
        nodes=8 * batch,
        **options,
    )
    asked = prompts(72) * (len(params) // 72) + prompts(len(params) % 72)
    return engine.generate(asked, params, "d", prediction=predictions)


@cache
def work(setting: str, count: int) -> tuple[list[SamplingParams], list[Completion]]:
    """Parameters of `count` requests, of different lengths, and their plain answers."""
    params = [
        SamplingParams(max_tokens=24 + seed % 17, seed=seed, **SETTINGS[setting])  # type: ignore[arg-type]
        for seed in range(count)
    ]
    return params, answer(load("none", target().info), params, 1)


def compare(name: str, setting: str, batch: int, count: int) -> None:
    params, plain = work(setting, count)
    done = answer(make(name, {c.seed: c.token_ids for c in plain}), params, batch, predicted(plain))
    different = [c.seed for c, p in zip(done, plain, strict=True) if c.token_ids != p.token_ids]
    assert not different, f"seeds {different} differ"
    drafted = sum(c.stats.drafted for c in done)
    accepted = sum(c.stats.accepted for c in done)
    assert (drafted > 0) == (name != "Empty")
    if name in HELPFUL and (name not in DRAFTERS or setting != "penalties"):  # they look for repetition
        assert accepted > 0
    if name not in {"Empty", "Oracle", *SAME}:
        assert accepted < drafted
    print(f"{name} {setting} batch {batch}: {count} answers equal, {accepted} of {drafted} accepted")


def cases(drafters: Sequence[str]) -> list[tuple[str, str, int]]:
    """Drafter, setting and batch: all of them, but one for drafters that run a model, which take many times
    as long and whose drafts go the same way."""
    return [
        (name, setting, batch)
        for name in drafters
        for setting in SETTINGS
        for batch in (1, 4)
        if name not in RUN_MODELS or (setting, batch) == ("top-p", 4)
    ]


@pytest.mark.parametrize(("name", "setting", "batch"), cases(DRAFTERS))
def test_every_drafter_gives_the_plain_answers(name: str, setting: str, batch: int) -> None:
    compare(name, setting, batch, 12)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_adversaries_change_nothing(name: str) -> None:
    compare(name, "top-p", 4, 12)


@pytest.mark.prove
@pytest.mark.parametrize(("name", "setting", "batch"), cases([*DRAFTERS, *sorted(BY_NAME)]))
def test_two_hundred_answers_equal_the_plain_ones(
    name: str, setting: str, batch: int, record_property: Record
) -> None:
    compare(name, setting, batch, 200)
    record_property("answers", 200)


def test_a_rule_that_trusts_drafts_is_found_out() -> None:
    params, plain = work("top-p", 12)
    done = answer(load("ngram", target().info), params, 4, rule=trusting)
    assert sum(c.token_ids != p.token_ids for c, p in zip(done, plain, strict=True)) >= 6


def test_a_mixed_batch_of_drafters_and_settings_gives_the_plain_answers() -> None:
    params, plain = zip(*[pair for s in SETTINGS for pair in zip(*work(s, 12), strict=True)], strict=True)
    drafters = {name: make(name, {}) for name in names()}
    engine = Engine(
        target(),
        drafters,
        drafter="none",
        tokenizer=tokenizer(),
        max_batch=4,
        chunk_tokens=40,
        share_prefixes=False,
    )
    choice = [sorted(drafters)[i % len(drafters)] for i in range(len(params))]
    done = engine.generate(prompts(12) * len(SETTINGS), params, choice, prediction=predicted(plain))
    assert [c.token_ids for c in done] == [c.token_ids for c in plain]
    assert [c.text for c in done] == [c.text for c in plain]
    assert {c.drafter for c in done} == set(drafters)


def test_greedy_text_is_sensible() -> None:
    question = [{"role": "user", "content": "Write one sentence about trains."}]
    engine = Engine(
        target(),
        {"none": load("none", target().info)},
        drafter="none",
        tokenizer=tokenizer(),
        share_prefixes=False,
    )
    completion = engine.generate(question, SamplingParams(temperature=0, max_tokens=60))[0]
    assert completion.finish_reason == "stop"
    assert "train" in completion.text.lower()
    assert completion.text.endswith(".")
