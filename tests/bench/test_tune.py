"""tune: the choice, the time limit, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from paceline.bench import tune, tuned
from paceline.bench.prompts import Prompt
from paceline.bench.setup import Setup
from paceline.bench.tuned import Profile
from paceline.errors import ConfigError
from paceline.targets.table import TableTarget
from tests.bench.test_speed import GREEDY, Forgetful, Words
from tests.toys import VOCABULARY

PROMPTS = [Prompt(str(n), "a", ("bcd" + "abcdefgh"[n] * (n + 1),)) for n in range(8)]


def compare(
    target: Any = None, seconds: float = 100.0, clock: Iterator[float] | None = None
) -> dict[str, Any]:
    ticks = clock or count(0.0, 0.0)
    return tune.compare(
        Setup(target or TableTarget(VOCABULARY), Words()),  # type: ignore[arg-type]
        ["suffix@fixed:nodes=2", "markov@fixed:nodes=4"],
        PROMPTS,
        GREEDY,
        seconds,
        str,
        clock=lambda: next(ticks),
    )


def test_every_drafter_is_tried_with_every_policy() -> None:
    assert tune.candidates(["a", "b"], [2]) == [
        "a@throughput",
        "a@fixed:nodes=2",
        "b@throughput",
        "b@fixed:nodes=2",
    ]
    with pytest.raises(ConfigError, match="leave @POLICY out"):
        tune.candidates(["a@fixed"], [2])


def test_all_prompts_run_where_time_allows_and_nothing_differs() -> None:
    report = compare()
    assert report["prompts"] == 8
    assert max(one["prompts"] for one in report["candidates"].values()) == 8
    assert all(one["different_outputs"] == 0 for one in report["candidates"].values())
    report |= {"title": "t", "machine": {"cpu": "c", "isa": "i", "threads": 1}}
    assert f"chosen: {report['drafter']}" in tune.table(report)


def test_no_round_begins_that_would_end_after_the_limit() -> None:
    # Each look at the clock takes a second: a round of three answers looks five times.
    report = compare(seconds=14.0, clock=count(0.0, 1.0))
    assert report["prompts"] == 2
    assert report["seconds"] < 16
    assert compare(seconds=1.0, clock=count(0.0, 1.0))["prompts"] == 1, "the first is always run"


def test_wrong_answers_are_seen_and_never_chosen() -> None:
    report = compare(Forgetful(VOCABULARY))
    assert any(one["different_outputs"] for one in report["candidates"].values())
    chosen = f"{report['drafter']}@{report['policy']}"
    assert not report["candidates"].get(chosen, {"different_outputs": 0})["different_outputs"]


def entry(ratio: float, verdict: str = "faster", dropped: bool = False, different: int = 0) -> dict[str, Any]:
    return {
        "ratio": ratio,
        "ratio_low": ratio - 0.1,
        "ratio_high": ratio + 0.1,
        "verdict": verdict,
        "dropped": dropped,
        "different_outputs": different,
        "prompts": 9,
    }


def test_the_fastest_that_is_faster_for_sure_is_chosen() -> None:
    entries = {"a@x": entry(1.5), "b@y:z=1": entry(1.6), "c@x": entry(1.9, dropped=True)}
    choice = tune.choose({**entries, "d@x": entry(2.0, different=1)})
    assert (choice["drafter"], choice["policy"], choice["enough"]) == ("b", "y:z=1", True)
    assert "1.60 times as fast" in choice["why"]
    assert "a@x with 1.50, hardly apart" in choice["why"]
    assert "hardly" not in tune.choose({"a@x": entry(1.2), "b@x": entry(1.6)})["why"]


@pytest.mark.parametrize(("verdict", "enough"), [("not shown", True), ("slower", True), ("too few", False)])
def test_without_a_sure_gain_plain_decoding_is_chosen(verdict: str, enough: bool) -> None:
    choice = tune.choose({"a@x": entry(1.05, verdict)})
    assert (choice["drafter"], choice["enough"]) == ("none", enough)


def test_a_profile_comes_back_as_it_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    profile = Profile("smollm2-135m", 2, "suffix:max_nodes=4+ngram", "fixed:nodes=2", 'wh"y\n\\ é', "now")
    assert tuned.read("smollm2-135m", 2) is None
    path = tuned.write(profile)
    assert path.is_relative_to(tmp_path)
    assert tuned.read("smollm2-135m", 2) == profile
    assert tuned.read("SmolLM2", 2) == profile, "the same model by another name"
    assert tuned.read("smollm2-135m", 1) is None
    assert tuned.read("gemma3-270m", 2) is None


@pytest.mark.parametrize("content", ["drafter = 3", "nonsense", "", 'drafter = "x"\nmore = "y"'])
def test_a_damaged_profile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    path = tuned.path_of("smollm2-135m", 2)
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ConfigError, match="is damaged; delete it"):
        tuned.read("smollm2-135m", 2)
