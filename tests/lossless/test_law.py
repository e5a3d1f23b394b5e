"""Every exact rule, end to end through the engine, draws from the target's own law; the twins are caught.

The quick tests run a few answers of each case, the long ones a hundred thousand. False alarms: 1e-9 each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from paceline.core import Budget, Drafter, Origin, Promise, Rule, Tree, View
from paceline.sampling import SamplingParams
from paceline.verify import refusal
from tests.discovery import RULES, Record
from tests.discovery import drafter as drafter_for
from tests.lossless.broken_rules import BROKEN
from tests.lossless.law_judge import (
    ALPHA,
    LENGTH,
    SETTINGS,
    VOCABULARY,
    drafters,
    judge,
    laws,
    p_values,
    target,
)
from tests.toys import Sampling, trusting

EXACT = {name: rule for name, rule in RULES.items() if rule.promise is not Promise.LOSSY}
LOSSY = sorted(RULES.keys() - EXACT.keys())
QUICK, LONG = 600, 100_000


def fitting(rule: Rule) -> dict[str, Drafter]:
    """The drafters that the rule takes, made anew."""
    return {name: made for name, made in drafters().items() if refusal(rule, name, made) is None}


CASES = [
    (name, drafter, setting)
    for name, rule in EXACT.items()
    for setting, drafter in zip(SETTINGS, itertools.cycle(fitting(rule)), strict=False)
]
"""Every rule with every setting and with every drafter that it takes."""


def test_the_cases_hold_every_rule_with_every_setting_and_every_drafter_it_takes() -> None:
    for name, rule in EXACT.items():
        assert {setting for rule_name, _, setting in CASES if rule_name == name} == set(SETTINGS)
        assert {drafter for rule_name, drafter, _ in CASES if rule_name == name} == set(fitting(rule))


@pytest.mark.parametrize(("name", "drafter", "setting"), CASES)
def test_every_rule_draws_from_the_targets_law(name: str, drafter: str, setting: str) -> None:
    found = p_values(EXACT[name], drafters()[drafter], SETTINGS[setting], QUICK)
    assert found.smallest > ALPHA
    assert min(found.drafted, found.accepted, found.rejected) > 0


@pytest.mark.prove
@pytest.mark.parametrize(("name", "drafter", "setting"), CASES)
def test_a_hundred_thousand_answers_follow_the_targets_law(
    name: str, drafter: str, setting: str, record_property: Record
) -> None:
    found = p_values(EXACT[name], drafters()[drafter], SETTINGS[setting], LONG, first_seed=10**6)
    record_property("answers", LONG)
    record_property("tokens accepted", found.accepted)
    record_property("tokens rejected", found.rejected)
    assert found.smallest > ALPHA
    assert min(found.drafted, found.accepted, found.rejected) > LONG / 20


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        *itertools.product(sorted(EXACT.keys() - {"kseq"}), ["ngram:shortest=1", "markov:widths=1x1"]),
        *itertools.product(["match", "recursive", "traversal"], ["suffix:min_probability=1e-6"]),
        ("kseq", "markov:widths=2x2"),
        *itertools.product(sorted(EXACT.keys() - {"kseq"}), ["draft:model=near,widths=1x1"]),
        ("kseq", "draft:model=near,widths=2x2"),
        ("recursive", "draft:model=near,widths=3x1,drawn=without_replacement"),
        ("block", "draft:model=near,widths=1x1,drafter=ngram:shortest=1"),
        ("rejection", "draft:model=near,widths=1x1,vocabulary=shared"),
        ("rejection", "slem:model=near,min_probability=0"),
        ("traversal", "skip:widths=1x1"),
        ("recursive", "exit:layers=2,widths=2x2"),
        ("block", "sparse:recent=16,widths=1x1"),
        ("rejection", "dflash:model=near,widths=1x1,candidates=1,min_probability=0"),
        ("recursive", "dflash:model=near,widths=2x2,drawn=without_replacement,min_probability=0"),
        ("rejection", "dflash2:model=near,widths=1x1,candidates=1,min_probability=0"),
        ("recursive", "dflash2:model=near,widths=2x2,drawn=without_replacement,min_probability=0"),
        ("rejection", "dspark:model=near,widths=1x1,candidates=1,min_probability=0,min_confidence=0.3"),
        ("recursive", "dspark:model=near,widths=2x2,min_probability=0,min_confidence=0.3"),
        ("rejection", "eagle3:model=near,widths=1x1"),
        ("recursive", "eagle3:model=near,widths=2x2,drawn=without_replacement"),
        ("rejection", "mtp:model=near,widths=1x1,min_probability=0"),
        ("recursive", "mtp:model=near,widths=2x2,min_probability=0,drawn=without_replacement"),
        ("block", "peagle:model=near,widths=1x1,min_probability=0"),
        ("recursive", "peagle:model=near,widths=2x2,min_probability=0,drawn=without_replacement"),
        ("block", "hydra:model=near,widths=1x1,min_probability=0"),
        ("recursive", "hydra:model=near,widths=2x2,min_probability=0,drawn=without_replacement"),
        ("block", "redrafter:model=near,widths=1x1,min_probability=0"),
        ("recursive", "redrafter:model=near,widths=2x2,min_probability=0,drawn=without_replacement"),
        *itertools.product(["rejection", "block"], ["medusa:model=near,widths=1x1,min_probability=0"]),
        ("traversal", "medusa:model=near,widths=2x2,min_probability=0"),
        ("recursive", "medusa:model=near,widths=2x2,min_probability=0,drawn=without_replacement"),
    ],
)
def test_the_drafters_that_come_along_keep_the_law(name: str, spec: str) -> None:
    subject = target()
    found = p_values(
        EXACT[name], drafter_for(spec, subject), SETTINGS["penalties"], 300, table_target=subject
    )
    assert found.smallest > ALPHA


def test_a_draft_model_that_declares_another_law_than_it_drew_from_is_caught() -> None:
    subject = target()
    liar = drafter_for("draft:model=near,widths=1x1,min_probability=0", subject)
    propose = liar.propose

    def flattened(view: View, budgets: Sequence[Budget]) -> list[Tree]:
        return [
            tree._replace(
                origins={
                    node: Origin(how, 0.5 * law + 0.5 / len(law)) for node, (how, law) in tree.origins.items()
                }
            )
            for tree in propose(view, budgets)
        ]

    liar.propose = flattened  # type: ignore[method-assign]
    found = p_values(EXACT["rejection"], liar, SETTINGS["temperature"], 3000, table_target=subject)
    assert found.smallest < ALPHA


# Twins -------------------------------------------------------------------------------------------------

STRONG = (
    "draws_from_the_target_after_a_refusal",
    "residual_of_the_row_below",
    "accepts_the_likeliest_token_always",
    "last_token_from_the_law_above",
    "block_that_stops_at_the_first_refusal",
    "traversal_that_forgets_the_tokens_before",
)


def caught(name: str, *counts: int) -> bool:
    """Whether some drafter shows that the rule is wrong, with one of these numbers of answers."""
    rule = BROKEN[name]
    # Most of what a poor drafter draws is refused, and what follows a refusal is where rules go wrong.
    poor = [Sampling(target().table, widths, "iid", blur=3.0) for widths in ((1, 1, 1), (3, 3))]
    chosen = [*reversed(fitting(rule).values()), *(d for d in poor if refusal(rule, "poor", d) is None)]
    return any(
        p_values(rule, drafter, SETTINGS["temperature"], count).smallest < ALPHA
        for count in counts
        for drafter in chosen
    )


@pytest.mark.parametrize("name", STRONG)
def test_broken_rules_are_caught_by_their_answers(name: str) -> None:
    assert caught(name, 3000)


@pytest.mark.prove
@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_rule_is_caught_by_a_hundred_thousand_answers(name: str) -> None:
    assert caught(name, LONG // 20, LONG)


def test_a_rule_that_trusts_the_drafter_is_caught() -> None:
    assert p_values(trusting, drafters()["fixed tree"], SETTINGS["temperature"], 1000).smallest < ALPHA


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_rules_are_caught(name: str) -> None:
    found = p_values(RULES[name], drafters()["drawn chain"], SETTINGS["temperature"], 1500)
    assert found.smallest < ALPHA


@pytest.mark.parametrize(
    ("asked", "given"), list(itertools.permutations(["top-k", "top-p", "penalties", "all"], 2))
)
def test_answers_from_other_controls_are_caught(asked: str, given: str) -> None:
    answers = drawn(SamplingParams(**SETTINGS[given]), 1500)
    joint, conditional = judge(answers, laws(target().table, SamplingParams(**SETTINGS[asked])))
    assert min(*joint, *itertools.chain(*conditional)) < ALPHA


def drawn(params: SamplingParams, count: int) -> np.ndarray:
    """Answers drawn by NumPy from the laws themselves: int [count, LENGTH]."""
    rng, found = np.random.default_rng(0), laws(target().table, params)
    answers: list[list[int]] = []
    for _ in range(count):
        answer: list[int] = []
        for _ in range(LENGTH):
            answer.append(int(rng.choice(VOCABULARY, p=found[tuple(answer)])))
        answers.append(answer)
    return np.array(answers)


def test_the_judge_itself_is_calibrated() -> None:
    """p-values of answers that follow the law are uniform, not merely above the bound."""
    params = SamplingParams(**SETTINGS["all"])
    found = [judge(answers, laws(target().table, params)) for answers in np.split(drawn(params, 20_000), 20)]
    for kind in (0, 1):
        values = np.array([[joint[kind], *(pair[kind] for pair in pairs)] for joint, pairs in found])
        assert values.min() > 1e-4
        assert 0.25 < values.mean() < 0.75
