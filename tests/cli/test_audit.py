"""paceline audit, the program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paceline.verify import RowRule

Paceline = Callable[..., Any]
SMALL = (
    "audit",
    "--model",
    "table",
    "--limit",
    "22",
    "--tokens",
    "300",
    "--rule",
    "match",
    "--drafter",
    "suffix",
)


def test_the_self_check_ends_with_json_and_writes_a_page(paceline: Paceline, tmp_path: Path) -> None:
    outcome = paceline(*SMALL, "--html", str(tmp_path / "page.html"))
    report = json.loads(outcome.out.splitlines()[-1])
    assert outcome.code == 0, outcome.err
    assert report["verdict"] == "held"
    assert "\nVerdict: held\n" in outcome.out
    assert max(map(len, outcome.out.splitlines()[:-1])) <= 110
    assert len(report["settings"]) > 5
    html = (tmp_path / "page.html").read_text()
    assert html.startswith("<!doctype html>")
    assert "<polyline" in html
    assert list(tmp_path.glob("*.partial")) == []


def test_controls_that_are_given_are_the_ones_that_are_checked(paceline: Paceline) -> None:
    outcome = paceline(*SMALL, "--temperature", "0.5", "--top-k", "3", "--max-tokens", "40", "--json")
    (line,) = outcome.out.splitlines()
    assert json.loads(line)["settings"] == [{"temperature": 0.5, "top_k": 3, "max_tokens": 40}]


def test_a_broken_engine_is_exit_code_1(paceline: Paceline, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RowRule.__call__

    def call(self: RowRule, draft: Any, *rest: Any) -> Any:
        verdict = real(self, draft, *rest)
        drafted = len(draft.tokens) > sum(root >= 0 for root in draft.roots)
        shift = int(drafted)
        return type(verdict)(verdict.paths, [t if t < 0 else (t + shift) % 8 for t in verdict.next_tokens])

    monkeypatch.setattr(RowRule, "__call__", call)
    outcome = paceline(*SMALL)
    assert outcome.code == 1
    assert "first difference" in outcome.out
    assert "Verdict: failed" in outcome.out


def test_an_audit_without_drafts_is_exit_code_2(paceline: Paceline) -> None:
    outcome = paceline(*SMALL[:-1], "none")
    assert outcome.code == 2
    assert "no token was drafted" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--alpha", "0"], "--alpha must be above 0 and below 1, got 0"),
        (["--alpha", "1"], "--alpha must be above 0 and below 1, got 1"),
        (["--html", "/dev/null/x/y.html"], "--html /dev/null/x/y.html: "),
        (["--temperature", "3"], "temperature must be a number"),
        (["--prompts", "p.jsonl"], "makes its own prompts"),
        (["--rows", "8"], "rows is an option of the PyTorch target"),
        (["--url", "http://localhost:1", "--rows", "8"], "--rows does not go with --url"),
    ],
)
def test_mistakes_are_one_line(paceline: Paceline, arguments: list[str], words: str) -> None:
    outcome = paceline(*SMALL, *arguments)
    assert outcome.code == 2
    assert words in outcome.err.splitlines()[-1]


@pytest.mark.model
def test_the_real_model_holds(monkeypatch: pytest.MonkeyPatch, paceline: Paceline) -> None:
    monkeypatch.delenv("PACELINE_CACHE")
    outcome = paceline(
        "audit", "--limit", "3", "--max-tokens", "48", "--temperature", "0", "--threads", "1", "--json"
    )
    report = json.loads(outcome.out)
    assert (outcome.code, report["verdict"]) == (0, "held"), report["reasons"]
    assert report["plain"]["wrong"] == 0
