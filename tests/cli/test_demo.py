"""`paceline demo` on the table model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from paceline.bench import measure
from paceline.engine import Engine
from tests.cli.conftest import Outcome

Paceline = Callable[..., Outcome]


def test_it_streams_an_answer_and_compares_it_with_plain_decoding(
    paceline: Paceline, engines: list[Engine]
) -> None:
    outcome = paceline("demo")
    assert outcome.code == 0
    assert "Summarise this notice" in outcome.out
    assert "speculative" in outcome.out
    assert outcome.out.rstrip().endswith("Outputs identical: yes")
    assert engines[0].idle


def test_its_json_has_the_figures(paceline: Paceline, engines: list[Engine]) -> None:
    outcome = paceline("demo", "--json")
    report = json.loads(outcome.out)
    assert report["identical"] is True
    assert report["plain"]["tau"] == 1
    assert report["speculative"]["tokens_per_second"] > 0


def test_outputs_that_differ_are_exit_code_1(
    paceline: Paceline, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "same", lambda left, right: False)
    outcome = paceline("demo")
    assert outcome.code == 1
    assert outcome.out.rstrip().endswith("Outputs identical: NO")


def test_no_round_is_drafted_for_from_an_earlier_one(
    paceline: Paceline, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = measure.answer

    def answer(*rest: Any) -> measure.Answer:
        done = real(*rest)
        if done.completion.drafter != "none":
            passes.append(done.completion.stats.passes)
        return done

    monkeypatch.setattr(measure, "answer", answer)
    paceline("demo")
    assert len(passes) == 6
    assert len(set(passes)) == 1
