"""Rules that promise the law keep it on this target: the audit's own test, and a twin that it catches."""

from __future__ import annotations

from typing import Any

import pytest
from rich.progress import Progress

from paceline import rules
from paceline.audit.local import FAILED, HELD, Audit, Plan
from paceline.audit.subject import Letters, Question, Subject
from paceline.sampling import SamplingParams
from paceline.targets.torch import TorchTarget
from tests.torch.families import small

TOKENS = 12
SETTINGS = [
    SamplingParams(temperature=1.0, max_tokens=10),
    SamplingParams(temperature=0.8, top_p=0.9, frequency_penalty=0.4, max_tokens=10),
]


def audited(rule: str, drafter: str, **options: Any) -> dict[str, Any]:
    target = TorchTarget(small("llama", vocab_size=TOKENS), **options)
    questions = [Question(str(first), [first, 3, 4, first, 3]) for first in range(1, 9)]
    subject = Subject("tiny", target, Letters(TOKENS), questions)
    plan = Plan(tokens=1200, batch=8, alpha=1e-6, seed=1)
    chosen = rules.load(rule, allow_lossy=True)
    return Audit(subject, SETTINGS, plan, Progress(disable=True)).run([(rule, chosen)], [drafter])


@pytest.mark.parametrize(
    ("rule", "drafter"),
    [
        ("match", "recycling:min_probability=1e-6"),
        ("block", "markov:widths=1x1"),
        ("traversal", "markov:widths=2x2"),
    ],
)
def test_a_rule_keeps_its_promise(rule: str, drafter: str) -> None:
    report = audited(rule, drafter, rows=8)
    assert report["verdict"] == HELD, report["reasons"]


def test_a_lossy_rule_is_caught() -> None:
    assert audited("lenient:lenience=0.05", "markov:widths=1x1")["verdict"] == FAILED
