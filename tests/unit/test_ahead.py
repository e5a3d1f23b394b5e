"""Drafting while the target verifies: what is found ready, and that nothing else changes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from paceline.core import Budget, Draft, Scores
from paceline.drafters import load
from paceline.drafters._ahead import Ahead, Foresight
from paceline.drafters._companion import Companion
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.pretrained import load_model
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.discovery import RULES, drafter, near
from tests.toys import VOCABULARY, Signs, SketchingTable
from tests.unit.test_model_drafters import words

HERE = threading.main_thread().ident


class Watched(SketchingTable):
    """Notes which thread asked for each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[bool] = []  # whether this thread asked

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        self.passes.append(threading.get_ident() == HERE)
        return super().forward(draft, taps)


class Slow(SketchingTable):
    """A target that takes so long that whatever is drafted meanwhile is drafted to its end."""

    ahead: Ahead | None = None

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        if self.ahead is not None and self.ahead._work is not None:
            self.ahead._work.exception()
        return super().forward(draft, taps)


def loaded(model: TableTarget, options: str) -> Any:
    offered = {"tokenizer": Signs(VOCABULARY), "load_model": lambda name, **where: (model, Signs(VOCABULARY))}
    return load(f"draft:model=x,min_probability=0,{options}", model.info, **offered)


def answers(
    model: TableTarget, options: str, rule: str = "match", temperature: float = 0, count: int = 1, **more: Any
) -> tuple[list[Completion], Engine]:
    target, made = Slow(), loaded(model, options)
    if isinstance(made, Ahead):
        target.ahead = made
    still: dict[str, Any] = {"clock": lambda: 0.0}  # no drafter is slow because the machine is
    engine = Engine(target, {"d": made}, drafter="d", rule=RULES[rule], eos_ids=frozenset(), **still, **more)
    params = [
        SamplingParams(temperature=temperature, seed=seed, max_tokens=30 + seed) for seed in range(count)
    ]
    return engine.generate([words(5 + seed, seed) for seed in range(count)], params), engine


def tokens(done: list[Completion]) -> list[Any]:
    return [(one.token_ids, one.stats.drafts) for one in done]


@pytest.mark.parametrize("temperature", [0, 1])
def test_drafts_that_were_foreseen_cost_the_engine_no_pass(temperature: float) -> None:
    model = Watched()
    (done,), _ = answers(model, "widths=1x1x1,ahead=1", temperature=temperature)
    assert done.stats.accepted == done.stats.drafted > 20
    assert model.passes.count(True) == 3, "the first draft alone"
    assert model.passes.count(False) > done.stats.passes


def test_a_draft_that_may_fail_is_gone_on_with_where_it_may() -> None:
    own = []
    for outcomes in (1, 4):
        model = Watched()
        model.table = near(SketchingTable()).table  # type: ignore[attr-defined]
        answers(model, f"widths=1x1x1,ahead={outcomes}", count=6)
        own.append(model.passes.count(True))
    assert own[1] < 0.8 * own[0]


SHAPES = [
    *((name, "1x1x1") for name in sorted(RULES) if name != "kseq"),
    *((name, "2x2") for name in sorted(RULES) if RULES[name].trees),
]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(("rule", "widths"), SHAPES)
def test_what_is_proposed_and_answered_is_the_same_under_every_rule(
    rule: str, widths: str, temperature: float
) -> None:
    both = [
        answers(near(SketchingTable()), f"widths={widths},ahead={outcomes}", rule, temperature, 7)[0]
        for outcomes in (0, 2)
    ]
    assert tokens(both[0]) == tokens(both[1])


def test_logits_of_another_text_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test above."""

    def follow(self: Foresight, slot: int, history: list[int]) -> None:
        self._known.setdefault(slot, {})  # nothing is forgotten or moved
        self._texts[slot] = list(history)

    plain, _ = answers(near(SketchingTable()), "widths=1x1x1,ahead=0", "rejection", 1, 7)
    monkeypatch.setattr(Foresight, "follow", follow)
    wrong, _ = answers(near(SketchingTable()), "widths=1x1x1,ahead=2", "rejection", 1, 7)
    assert tokens(plain) != tokens(wrong)


def test_what_was_foreseen_for_another_text_is_no_use() -> None:
    model = Watched()
    foresight = Foresight(Companion(model))
    text = words(6)
    foresight.follow(0, text)
    stale = foresight.score([0], [text], [(0, ())])[0]
    foresight.follow(0, [*text, 3])
    fresh = foresight.score([0], [[*text, 3]], [(0, ())])[0]
    assert (fresh != stale).any()
    assert (fresh == Companion(model).score([1], [[*text, 3]], [(0, ())])[0]).all()


def test_without_waiting_a_token_that_was_not_foreseen_is_verified_alone() -> None:
    model = Watched()
    (done,), _ = answers(model, "widths=1x1x1,ahead=1,wait=false")
    assert done.stats.drafted > 20
    assert model.passes.count(True) == 0
    assert done.stats.drafts[0] == {0: 2}, "the pass over the prompt, and the one behind it"
    (plain,), _ = answers(model, "widths=1x1x1")
    assert done.token_ids == plain.token_ids


def test_under_a_rule_that_compares_laws_every_draft_is_waited_for() -> None:
    both = [
        answers(near(SketchingTable()), f"widths=1x1{more}", "rejection", 1, 5)[0]
        for more in ("", ",ahead=2,wait=false")
    ]
    assert tokens(both[0]) == tokens(both[1])


def test_requests_share_passes_come_and_go() -> None:
    done, engine = answers(near(SketchingTable()), "ahead=2", count=9, temperature=1, max_batch=3, nodes=12)
    plain, _ = answers(near(SketchingTable()), "ahead=0", count=9, temperature=1, max_batch=3, nodes=12)
    assert tokens(done) == tokens(plain)
    assert engine.load.draft_failures == {}


def test_controls_that_remember_are_left_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loaded(Watched(), "ahead=2")
    engine = Engine(SketchingTable(), {"d": made}, drafter="d", eos_ids=frozenset())
    foreseen: list[Any] = []
    monkeypatch.setattr(made, "_foresee", lambda view, *_: foreseen.append(list(view.slots)))
    params = [
        SamplingParams(temperature=1, seed=1, max_tokens=9),
        SamplingParams(repetition_penalty=1.3, max_tokens=9),
    ]
    engine.generate([words(4), words(5)], params)
    assert {len(slots) for slots in foreseen} == {1}


@pytest.mark.parametrize("wait", ["true", "false"])
def test_requests_that_are_not_foreseen_are_drafted_for(wait: str) -> None:
    made = loaded(Watched(), f"ahead=1,wait={wait}")
    engine = Engine(SketchingTable(), {"d": made}, drafter="d", eos_ids=frozenset())
    (done,) = engine.generate(words(5), SamplingParams(repetition_penalty=1.3, max_tokens=20))
    assert done.stats.accepted > 5


def test_a_failure_in_the_thread_costs_drafts_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Watched):
        def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
            if threading.get_ident() != HERE:
                raise RuntimeError("the other thread is not well")
            return super().forward(draft, taps)

    (done,), engine = answers(Failing(), "ahead=1")
    (plain,), _ = answers(Watched(), "ahead=0")
    assert done.token_ids == plain.token_ids
    assert engine.load.draft_failures["d"]["raised"] == 3
    assert engine.load.drafters_off == {"d"}
    assert "the other thread is not well" in caplog.text
    assert not engine._router._drafters["d"]._drafter._scorer._texts  # type: ignore[attr-defined]


def test_a_request_that_is_cancelled_waits_for_a_pass_at_most() -> None:
    going, made_passes = threading.Event(), []

    class Held(Watched):
        def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
            if threading.get_ident() != HERE:
                made_passes.append(1)
                going.wait()
            return super().forward(draft, taps)

    made = loaded(Held(), "widths=1x1x1x1x1x1,ahead=1")
    engine = Engine(SketchingTable(), {"d": made}, drafter="d", eos_ids=frozenset())
    request = engine.submit(words(5), SamplingParams(temperature=0, max_tokens=30))
    going.set()
    for _ in range(2):
        engine.step()
    assert made._work is not None
    made._work.exception()  # a slow thread would be held before the pass that this is about
    going.clear()
    engine.step()
    threading.Timer(0.05, going.set).start()
    before = len(made_passes)
    engine.cancel(request)
    assert len(made_passes) - before <= 1
    assert made._work is None
    assert engine.idle


def test_a_cache_without_room_for_more_is_drafted_from_as_before() -> None:
    small = SketchingTable(max_positions=60, cache_tokens=64, page_tokens=16)
    done, engine = answers(small, "ahead=3", count=3, max_batch=2)
    assert engine.load.draft_failures == {}
    assert sum(one.stats.accepted for one in done) > 0
    assert not small._cache


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ahead=-1", "draft:ahead must be at least 0, got -1"),
        ("wait=false", "draft:wait=false needs draft:ahead of at least 1"),
        ("ahead=1,drafter=ngram", "draft:ahead needs draft:drafter=none, got ngram"),
        ("ahead=1,wait=perhaps", "draft:wait must be true or false, got 'perhaps'"),
    ],
)
def test_what_does_not_go_together_is_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        drafter(f"draft:model=near,{options}", SketchingTable())


def test_a_file_runs_on_the_cpu_alone(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.touch()
    with pytest.raises(ConfigError, match=r"device is cuda:1, but .*small\.gguf runs on the native target"):
        load_model(file, device="cuda:1")


def test_a_view_without_budget_is_not_foreseen() -> None:
    made = loaded(Watched(), "ahead=1")
    engine = Engine(SketchingTable(), {"d": made}, drafter="d")
    engine.generate(words(4), SamplingParams(max_tokens=3), limit=Budget(0, 0))
    assert made._work is None
