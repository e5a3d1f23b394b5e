"""bench oracle: what perfect choices are worth."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.bench import oracle
from paceline.bench.oracle import Proposal, judge
from paceline.bench.setup import Setup
from paceline.core import Tree
from paceline.errors import ConfigError
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.bench.test_speed import GREEDY, PROMPTS, Words
from tests.toys import VOCABULARY


def compare(drafters: list[str], params: SamplingParams = GREEDY) -> dict[str, Any]:
    setup = Setup(TableTarget(VOCABULARY), Words())  # type: ignore[arg-type]
    return oracle.compare(setup, drafters, PROMPTS, params, str, "fixed:nodes=2")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_knowing_more_is_never_worse(temperature: float) -> None:
    report = compare(
        ["suffix", "markov"], SamplingParams(min_tokens=40, max_tokens=40, temperature=temperature, seed=1)
    )
    best = max(entry["ratio"] for entry in report["drafters"].values())
    each, perfect = report["best_drafter_per_step"]["ratio"], report["perfect_policy"]["ratio"]
    assert 0.8 < report["real_policy"]["ratio"] < perfect
    assert 1 < best < each < perfect
    report |= {"title": "t", "machine": {"cpu": "c", "isa": "i", "threads": 1}}
    assert "perfect policy" in oracle.table(report)


def proposal(size: int, right: int) -> Proposal:
    """A chain of `size` tokens of which the first `right` are right."""
    return Proposal(
        tuple(min(size, budget) for budget in oracle.BUDGETS),
        tuple(min(right, budget) for budget in oracle.BUDGETS),
    )


def cost(tokens: int) -> float:
    return 1 + 0.5 * (tokens - 1)


def test_a_trace_worked_out_by_hand() -> None:
    good, bad = proposal(2, 2), proposal(2, 0)
    first, neither, last = {"a": good, "b": bad}, {"a": bad, "b": bad}, {"a": bad, "b": good}
    trace = [first, neither, neither, last, last, last]
    result = judge([trace], ["a", "b"], cost)
    # a with 2 nodes: a pass of cost 2 brings three tokens, then three of cost 2 bring one each: 6 / 8; with
    # 1: cost 1.5 for two tokens, then four times 1.5: 6 / 7.5.
    assert result["drafters"]["a"]["by_nodes"]["2"]["ratio"] == pytest.approx(6 / 8)
    assert result["drafters"]["a"]["ratio"] == pytest.approx(6 / 7.5)
    assert result["drafters"]["a"]["best_nodes"] == 1
    # a, then b, with 2 nodes: two passes of cost 2 for all six tokens.
    assert result["best_drafter_per_step"]["best_nodes"] == 2
    assert result["best_drafter_per_step"]["ratio"] == pytest.approx(6 / 4)
    assert result["perfect_policy"] == pytest.approx({"ratio": 6 / 4, "tau": 3})


def test_a_perfect_policy_drafts_nothing_where_nothing_pays() -> None:
    trace = [{"a": proposal(4, 0)}] * 5
    assert judge([trace], ["a"], cost)["perfect_policy"] == {"ratio": 1, "tau": 1}


def test_a_tree_is_cut_to_its_likeliest_nodes() -> None:
    tree = Tree([5, 6, 7], [-1, 0, -1], confidences=[0.9, 0.8, 0.3])
    assert oracle._proposal(tree, [5, 6, 1]) == ((1, 2, 3, 3, 3), (1, 2, 2, 2, 2))
    assert oracle._proposal(tree, [7]) == ((1, 2, 3, 3, 3), (0, 0, 1, 1, 1))


def test_what_cannot_be_judged_is_said() -> None:
    with pytest.raises(ConfigError, match="leave @POLICY out"):
        compare(["suffix@fixed"])
    with pytest.raises(ConfigError, match="take more --max-tokens"):
        compare(["suffix"], SamplingParams(temperature=0, max_tokens=1))
