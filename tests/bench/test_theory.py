"""The arithmetic of speculation, and what `advise` makes of it."""

from __future__ import annotations

import pytest

from paceline.bench import advise, theory


def stairs(tokens: float) -> float:
    """Passes that are free up to 4 tokens and cost 30 % per token beyond."""
    return 2 * (1 + 0.3 * max(0.0, tokens - 4))


@pytest.mark.parametrize(("acceptance", "drafted"), [(0.3, 1), (0.7, 5), (0.95, 12)])
def test_expected_tokens_are_the_published_formula(acceptance: float, drafted: int) -> None:
    formula = (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
    assert theory.expected_tokens(acceptance, drafted) == pytest.approx(formula)
    assert theory.expected_tokens(1.0, drafted) == drafted + 1


def test_the_published_ratio_comes_out_where_its_assumptions_hold() -> None:
    # A draft model of a tenth of the target's size, and passes that cost the same for any number of tokens.
    ratio = theory.speed_up(0.8, 5, lambda tokens: 1.0, draft_cost=0.1)
    assert ratio == pytest.approx((1 - 0.8**6) / (0.2 * 1.5))


@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("batch", [1, 4])
def test_no_other_number_of_tokens_is_faster_than_the_best(acceptance: float, batch: int) -> None:
    best = theory.best_drafted(acceptance, stairs, 0.05, batch)
    speeds = [theory.speed_up(acceptance, drafted, stairs, 0.05, batch) for drafted in range(33)]
    assert speeds[best] == max(speeds) >= 1
    assert (best == 0) == (max(speeds[1:]) <= 1)


@pytest.mark.parametrize("drafted", [1, 4, 8])
def test_at_break_even_drafting_changes_nothing(drafted: int) -> None:
    rate = theory.break_even(drafted, stairs, 0.1)
    assert rate is not None
    assert theory.speed_up(rate, drafted, stairs, 0.1) == pytest.approx(1)
    assert theory.speed_up(rate - 0.01, drafted, stairs, 0.1) < 1


def test_what_never_pays_has_no_break_even() -> None:
    assert theory.break_even(4, stairs, draft_cost=1.5) is None


def test_costs_between_the_measured_ones_are_straight_and_go_on_beyond() -> None:
    cost = theory.interpolated({1: 1.0, 3: 2.0, 5: 6.0})
    assert [cost(n) for n in (1, 2, 3, 4, 5, 6)] == pytest.approx([1, 1.5, 2, 4, 6, 8])
    assert theory.interpolated({2: 3.0})(9) == 3


def test_advice_agrees_with_the_arithmetic_and_with_itself() -> None:
    sizes = [2 * (drafted + 1) for drafted in (0, *advise.BUDGETS)]
    report = advise.advise({n: stairs(n) for n in sizes}, [0.1, 0.9], 0.2, batch=2)
    for entry in report["budgets"].values():
        assert (entry["break_even"] is None) == (entry["most"] < 1)
    low, high = report["best"]["0.1"], report["best"]["0.9"]
    assert low["nodes"] < high["nodes"]
    assert 1 <= low["ratio"] < high["ratio"]
    assert report["plain_ms"] == pytest.approx(2000)
    report |= {"title": "t", "context": 1, "machine": {"cpu": "c", "isa": "i", "threads": 1}}
    text = advise.table(report)
    assert "2 requests at a time" in text
    never = advise.advise({1: 1.0, 33: 99.0}, [0.9])
    assert "never" in advise.table(report | never)
