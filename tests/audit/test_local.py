"""The audit of the engine holds on the engine and fails on engines with a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paceline.audit import local, subject
from paceline.audit.identity import Request, Stuck, answers
from paceline.audit.local import Plan
from paceline.audit.page import page
from paceline.audit.referee import Referee
from paceline.audit.report import text
from paceline.audit.subject import Question
from paceline.core import Lane
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.grammar import Grammar
from paceline.laws import Controls, Laws
from paceline.noise import Noise
from paceline.results import TokenLogprobs
from paceline.rules import exact
from paceline.sampling import SamplingParams
from paceline.scheduler import Scheduler
from paceline.targets.table import TableTarget
from paceline.verify import RowRule

TREES = "markov:widths=2x2"


def audit(
    rule: str = "match",
    drafter: str = TREES,
    *,
    tokens: int = 600,
    settings: list[SamplingParams] | None = None,
    **more: Any,
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": "table",
        "rules": [rule],
        "drafters": [drafter],
        "prompts": None,
        "limit": 33,
        "settings": settings or subject.self_check_settings(16),
        "plan": Plan(tokens, 4, 1e-3, 0),
        "allow_lossy": False,
        "threads": None,
        "note": lambda text: None,
        **more,
    }
    report = local.run(**options)
    assert json.loads(json.dumps(report, allow_nan=False))
    assert f"Verdict: {report['verdict']}" in text(report)
    assert report["verdict"] in page(report)
    return report


@pytest.mark.parametrize("rule", ["match", "recursive"])
def test_the_engine_holds_under_every_kind_of_control(rule: str) -> None:
    report = audit(rule)
    assert (report["verdict"], report["reasons"]) == ("held", [])
    (one,) = report["audits"]
    assert one["identity"]["different"] == 0
    assert one["identity"]["answers"] == (4 if rule == "match" else 2) * 33
    for part in (one["identity"], one["law"]):
        assert min(part["drafted"], part["accepted"], part["rejected"]) > 0
    assert one["law"]["tokens"] >= 600
    assert one["law"]["largest_log10_e"] < 3
    assert 0 < one["law"]["smallest_caught"] < 0.5
    assert report["plain"] | {"tokens": 0} == {
        "answers": 66, "tokens": 0, "wrong": 0, "faults": [], "error": None
    } or rule != "match"  # fmt: skip


def test_without_names_all_exact_rules_meet_all_drafters_that_fit() -> None:
    report = audit(rules=None, drafters=None, tokens=60, limit=22)
    assert report["verdict"] in ("held", "could not run")
    pairs = {(one["rule"], one["drafter"]) for one in report["audits"]}
    assert {("match", "suffix"), ("match", TREES), ("recursive", TREES)} <= pairs
    assert all(one["promise"] != "lossy" for one in report["audits"])
    assert all(one["law"]["alpha"] == pytest.approx(1e-3 / len(pairs)) for one in report["audits"])
    assert len(pairs) + len(report["skipped"]) == len(exact()) * len(local.all_drafters())


def test_at_temperature_0_only_identity_is_checked() -> None:
    report = audit(settings=[SamplingParams(temperature=0, max_tokens=16)])
    assert report["verdict"] == "held"
    assert report["audits"][0]["law"] is None
    assert report["audits"][0]["identity"]["answers"] == 66


def test_without_a_drafter_there_is_nothing_to_audit() -> None:
    report = audit(drafter="none", tokens=100)
    assert report["verdict"] == "could not run"
    assert "no token was drafted; take more prompts" in report["reasons"][0]


Break = Callable[[pytest.MonkeyPatch], None]


def lenient(patch: pytest.MonkeyPatch) -> None:
    real = Noise.accepts
    patch.setattr(Noise, "accepts", lambda self, row, at, i, p, q: real(self, row, at, i, 2 * p, q))


def noise_by_step(patch: pytest.MonkeyPatch) -> None:
    real, calls = Noise.key, iter(range(10**9))
    patch.setattr(Noise, "key", lambda self, row, lane, at: real(self, row, lane, next(calls)))


def seed_ignored(patch: pytest.MonkeyPatch) -> None:
    real = Noise.__init__
    patch.setattr(Noise, "__init__", lambda self, seeds: real(self, [0] * len(seeds)))


def penalties_not_along_the_path(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Laws, "_path", lambda self, row, node: [])


def ending_ignored(patch: pytest.MonkeyPatch) -> None:
    real = Controls.__init__

    def init(self: Controls, *rest: Any) -> None:
        real(self, *rest)
        self.ending = frozenset()

    patch.setattr(Controls, "__init__", init)


def min_tokens_off_by_one(patch: pytest.MonkeyPatch) -> None:
    real = Controls.adjust
    patch.setattr(Controls, "adjust", lambda self, x, answered, path: real(self, x, answered + 1, path))


def rows_mixed_up(patch: pytest.MonkeyPatch) -> None:
    real = RowRule.__call__

    def call(self: RowRule, *rest: Any) -> Any:
        verdict = real(self, *rest)
        verdict.next_tokens.reverse()  # type: ignore[attr-defined]
        return verdict

    patch.setattr(RowRule, "__call__", call)


def crash(patch: pytest.MonkeyPatch) -> None:
    real, calls = TableTarget.commit, iter(range(10**9))

    def commit(self: TableTarget, *rest: Any) -> None:
        if next(calls) > 2000:
            raise IndexError("row 7")
        real(self, *rest)

    patch.setattr(TableTarget, "commit", commit)


def crash_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TableTarget, "commit", lambda *rest: 1 / 0)


def no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "apply", lambda *rest: [])
    patch.setattr(TableTarget, "commit", lambda *rest: None)


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("recursive", lenient),
        ("match", noise_by_step),
        ("match", seed_ignored),
        ("match", penalties_not_along_the_path),
        ("match", ending_ignored),
        ("match", min_tokens_off_by_one),
        ("match", rows_mixed_up),
        ("recursive", crash),
        ("match", crash_at_once),
        ("match", no_end),
    ],
)
def test_an_engine_with_a_fault_fails(rule: str, fault: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    report = audit(rule, tokens=6000)
    assert report["verdict"] == "failed"
    assert report["reasons"]


def test_the_first_difference_is_told_with_the_referees_reckoning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speculative runs draw from other logits than plain decoding does."""
    real = Laws.draw

    def draw(self: Laws, node: int, noise: Noise, lane: Lane = Lane.TARGET) -> int:
        token = real(self, node, noise, lane)
        drafted = len(self._draft.tokens) > 1 and self._draft.positions[node] > 99
        return (token + 1) % 8 if drafted and token > 3 else token

    monkeypatch.setattr(Laws, "draw", draw)
    report = audit(settings=[SamplingParams(temperature=0, max_tokens=16)])
    first = report["audits"][0]["identity"]["differences"][0]
    assert first["kind"] == "token"
    assert first["run"] == "alone"
    assert first["referee"] == first["plain"]
    assert first["gap"] >= first["top_two"] > 0
    assert f"position {first['position']}, token {first['plain']} (" in text(report)


def test_other_log_probabilities_are_a_difference_that_can_be_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Laws.logprobs

    def logprobs(self: Laws, node: int, token: int, top: int) -> TokenLogprobs:
        right = real(self, node, token, top)
        return replace(right, logprob=right.logprob - 1) if len(self._draft.tokens) > 1 else right

    monkeypatch.setattr(Laws, "logprobs", logprobs)
    report = audit(settings=[SamplingParams(max_tokens=16, logprobs=2)])
    assert report["verdict"] == "failed"
    first = report["audits"][0]["identity"]["differences"][0]
    assert first["kind"].startswith("log-probabilities at position ")
    assert abs(first["plain"]["logprob"] - first["speculative"]["logprob"]) > 0.5
    assert json.loads(json.dumps(first))["plain"]["logprob"] == first["plain"]["logprob"]
    assert first["kind"] in text(report)


def test_lossy_rules_say_so() -> None:
    report = audit(settings=[SamplingParams(temperature=0, max_tokens=8)])
    report["audits"][0]["promise"] = "lossy"
    assert "lossy: match promises nothing and is expected to fail" in text(report)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "table:vocab_size=2"}, "table:vocab_size must be 4 to 26, got 2"),
        ({"model": "table:spread=0"}, "table:spread must be above 0, up to 20, got 0"),
        ({"model": "table:seed=-1"}, "table:seed must be"),
        ({"model": "table:size=2"}, "table has no option 'size'; it has vocab_size, spread, seed"),
        ({"prompts": "x"}, "makes its own prompts"),
        ({"rules": ["matching"]}, "there is no rule 'matching'"),
        ({"drafters": ["sufix"]}, "there is no drafter 'sufix'"),
        ({"drafters": ["suffix", "sufix"]}, "there is no drafter 'sufix'"),
        ({"settings": [SamplingParams(stop_token_ids=[99])]}, "99"),
    ],
)
def test_mistakes_are_told_before_anything_runs(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        audit(**options)


def test_a_pair_that_does_not_fit_is_refused_alone_and_left_out_among_others() -> None:
    from paceline.core import Drawn
    from paceline.rules.match import match
    from paceline.verify import replace

    narrow = replace(match, name="narrow", takes=frozenset({Drawn.FIXED}))
    made = subject.resolve("table", None, 8, None)

    @contextmanager
    def no_bar() -> Any:
        class Silent:
            def add_task(self, *rest: Any, **more: Any) -> int:
                return 0

            reset = advance = lambda self, *rest, **more: None

        yield Silent()

    with no_bar() as silent:
        one = local.Audit(made, [SamplingParams(temperature=0, max_tokens=16)], Plan(50, 2, 0.01, 0), silent)
        with pytest.raises(IncompatibleDrafter, match="rule narrow takes"):
            one.run([("narrow", narrow)], [TREES])
        report = one.run([("narrow", narrow)], [TREES, "suffix"])
    assert [left_out["drafter"] for left_out in report["skipped"]] == [TREES]
    assert [kept["drafter"] for kept in report["audits"]] == ["suffix"]


class TestReferee:
    target = TableTarget(8, max_positions=64)
    referee = Referee(target, frozenset({0}), subject.Letters(8))

    def answer(self, params: SamplingParams, prompt: tuple[int, ...] = (3, 1, 2)) -> Any:
        from paceline.drafters import load

        drafters = {"none": load("none", self.target.info)}
        engine = Engine(self.target, drafters, drafter="none", tokenizer=subject.Letters(8))
        return engine.generate([list(prompt)], params)[0]

    def test_it_gives_the_tables_own_laws(self) -> None:
        (first, second) = self.referee.laws([3, 1, 2], [4, 5], SamplingParams())
        for law, logits in ((first, self.target.table[1, 2]), (second, self.target.table[2, 4])):
            assert np.allclose(np.exp(law), np.exp(logits) / np.exp(logits).sum())

    def test_it_reads_long_texts_in_chunks(self) -> None:
        prompt = [1 + n % 7 for n in range(62)]
        (law, _) = self.referee.laws(prompt, [4, 5], SamplingParams())
        assert np.argmax(law) == np.argmax(self.target.table[prompt[-2], prompt[-1]])
        long = Referee(TableTarget(8, max_positions=256), frozenset({0}), subject.Letters(8))
        prompt = [1 + n % 7 for n in range(200)]
        laws = list(long.laws(prompt, [4] * 20, SamplingParams()))
        assert len(laws) == 20
        assert np.argmax(laws[19]) == np.argmax(self.target.table[4, 4])

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_it_draws_what_plain_decoding_draws(self, temperature: float) -> None:
        params = SamplingParams(
            temperature=temperature, top_p=0.9, presence_penalty=0.7, max_tokens=30, seed=4
        )
        done = self.answer(params)
        found = list(self.referee.reckon([3, 1, 2], done.token_ids, params, 4))
        assert [one.drawn for one in found] == list(done.token_ids)
        assert all(one.gap == 0 and one.top_two > 0 for one in found)

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize(
        "controls",
        [
            {},
            {"stop": ["bc", "f"], "min_tokens": 3},
            {"stop": ["ff", "a", "gf"], "ignore_eos": True},
            {"stop_token_ids": [5], "max_tokens": 200},
            {"bad_words": ["b", "cd"]},
            {"grammar": Grammar.regex("(b|cd|e[bcd])*g?h")},
        ],
        ids=str,
    )
    def test_true_ends_are_no_fault(self, seed: int, controls: dict[str, Any]) -> None:
        params = SamplingParams(**{"max_tokens": 30, "seed": seed, **controls})
        assert self.referee.wrong_end([3, 1, 2], self.answer(params), params) is None

    @pytest.mark.parametrize(
        ("tokens", "change", "words"),
        [
            ((1, 0, 2), {}, "goes on after the ending token at position 1"),
            ((1, 2, 3, 4, 1, 1, 1), {}, "has 7 tokens, allowed are 6"),
            ((1, 2, 3), {}, "ends after 3 of 6 tokens without a reason"),
            ((1, 6, 7, 2), {}, "goes on after the stop string 'gh' at position 2"),
            ((1, 0), {"finish_reason": "length"}, r"says it ended by length, None; it did by \('stop', 0\)"),
            ((1, 2, 1, 1, 1, 1), {"finish_reason": "length"}, "has the text '', its tokens say 'bcbbbb'"),
        ],
    )
    def test_wrong_ends_are_told(self, tokens: tuple[int, ...], change: dict[str, Any], words: str) -> None:
        from dataclasses import replace

        params = SamplingParams(max_tokens=6, stop=["gh"])
        done = replace(self.answer(params), token_ids=tokens, text="", stop_reason=None, **change)
        fault = self.referee.wrong_end([3, 1, 2], done, params)
        import re

        assert fault is not None
        assert re.search(words, fault)


def test_answers_that_never_end_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from paceline.drafters import load

    target = TableTarget(8)
    engine = Engine(target, {"none": load("none", target.info)}, drafter="none")
    monkeypatch.setattr(engine, "step", lambda: [])
    with pytest.raises(Stuck, match="1 of 1 answers have no end"):
        answers(engine, [Request(Question("1", [1]), SamplingParams())], lambda count: None)
