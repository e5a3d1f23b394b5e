"""bench speed, on the table target and on the real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.bench import export, speed
from paceline.bench.prompts import Prompt
from paceline.bench.setup import Setup
from paceline.core import Draft, Scores, Verdict
from paceline.drafters.suffix import Suffix
from paceline.errors import ConfigError
from paceline.rules.recursive import recursive
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.toys import VOCABULARY, Letters

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = [Prompt(str(n), "ab"[n % 2], (text,)) for n, text in enumerate(("bcd", "dcb", "ccb", "bbd", "ddd"))]


class Words(Letters):
    """Letters that also take what is no letter, as real tokenizers do."""

    has_chat_template = True

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text]


def compare(
    target: Any = None, drafters: tuple[str, ...] = ("suffix", "ngram"), **more: Any
) -> dict[str, Any]:
    options: dict[str, Any] = {"prompts": PROMPTS, "params": GREEDY, "note": lambda text: None, **more}
    return speed.compare(Setup(target or TableTarget(VOCABULARY), Words()), drafters, **options)  # type: ignore[arg-type]


def test_the_report_has_every_figure_that_it_promises() -> None:
    report = compare()
    assert report["prompts"] == 5
    assert report["plain"]["tokens_per_second"] > 0
    assert report["plain"]["tau"] == 1
    assert list(report["drafters"]) == ["suffix", "ngram"]
    for entry in report["drafters"].values():
        assert entry["different_outputs"] == 0
        assert entry["ratio_low"] <= entry["ratio"] <= entry["ratio_high"]
        assert 0 <= entry["acceptance_rate"] <= 1 <= entry["tau"]
        assert sum(entry["share_of_decode_time"].values()) == pytest.approx(1)
        assert {name: part["prompts"] for name, part in entry["by_category"].items()} == {"a": 3, "b": 2}
        assert sum(part["tokens"] for part in entry["by_category"].values()) == entry["tokens"] == 60
    assert json.loads(json.dumps(report)) == report
    report |= {"title": "t", "model": "m", "machine": {"cpu": "c", "isa": "i", "threads": 1}}
    text = speed.table(report)
    assert "suffix by category" in text
    assert {part["verdict"] for part in report["drafters"]["suffix"]["by_category"].values()} == {"too few"}
    assert text.count("too few") >= 4, "two drafters, two categories each"


@pytest.mark.parametrize(("temperature", "promised"), [(0.0, True), (1.0, False)])
def test_a_rule_that_promises_the_law_promises_the_tokens_at_temperature_0_only(
    temperature: float, promised: bool
) -> None:
    params = SamplingParams(temperature=temperature, max_tokens=12, seed=0)
    report = compare(drafters=("markov",), params=params, rule=recursive)
    entry = report["drafters"]["markov"]
    assert report["same_outputs_promised"] is promised
    assert (entry["different_outputs"] == 0) is promised
    report |= {"title": "t", "model": "m", "machine": {"cpu": "c", "isa": "i", "threads": 1}}
    text = speed.table(report)
    assert "rule recursive (exact in law)" in text
    assert ("which must be 0" in text) is promised
    report["promise"] = "lossy"
    assert "promises nothing" in speed.table(report) or promised


def test_everyone_goes_first_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = speed.answer

    def answer(engine: Any, prompt: Any, params: Any, drafter: str, *rest: Any) -> Any:
        order.append(drafter)
        return real(engine, prompt, params, drafter, *rest)

    monkeypatch.setattr(speed, "answer", answer)
    prompts = [Prompt(str(n), "ab"[n % 2], ("b" * (n + 1),)) for n in range(12)]
    compare(prompts=prompts, drafters=("suffix", "ngram"))
    measured = order[3:]
    rounds = [measured[place : place + 3] for place in range(0, 36, 3)]
    assert all(sorted(names) == ["ngram", "none", "suffix"] for names in rounds)
    for category in (0, 1):
        first = [names[0] for names in rounds[category::2]]
        assert {first.count(name) for name in ("none", "suffix", "ngram")} == {2}


def test_no_drafter_is_drafted_for_from_an_earlier_run_of_the_same_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a suffix store holds at any time are the answers of its own drafter to other prompts."""
    stored: list[list[int]] = []
    prompts: list[tuple[int, ...]] = []
    real = Suffix.release

    def release(self: Suffix, slots: Any) -> None:
        stored.append([int(token) for slot in slots for token in self._texts[slot].tokens])
        real(self, slots)

    monkeypatch.setattr(Suffix, "release", release)
    compare(drafters=("suffix",))
    prompts = [tuple(text[: len(PROMPTS[0].text)]) for text in stored[1:]]
    assert stored[0][0] == ord("N") % VOCABULARY, "the first is the warm-up"
    assert len(stored) == 1 + len(PROMPTS), "one answer per prompt: none of plain decoding's"
    assert len(set(prompts)) == len(PROMPTS)


def test_the_measured_drafters_know_nothing_of_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Any] = []
    real = Setup.engine
    monkeypatch.setattr(Setup, "engine", lambda *rest: engines.append(real(*rest)) or engines[-1])
    compare(drafters=("suffix",))
    _, warm, _, measured = engines
    assert warm.drafters["suffix"] is not measured.drafters["suffix"]
    assert warm.policy is not measured.policy
    assert warm.target is measured.target


def test_a_contender_may_have_a_policy_of_its_own() -> None:
    params = SamplingParams(temperature=0, max_tokens=60)
    report = compare(drafters=("markov", "markov@fixed:nodes=1"), params=params)
    free, one = report["drafters"].values()
    assert one["tokens"] == free["tokens"]
    assert one["acceptance_rate"] > free["acceptance_rate"] > 0, "one token of a draft is the likeliest"
    with pytest.raises(ConfigError, match="there is no policy 'luck'"):
        compare(drafters=("ngram@luck",))


class Forgetful(TableTarget):
    """A broken target: its logits depend on how many nodes are scored."""

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        scores = super().forward(draft, taps)
        if len(draft.scored) == 1:
            return scores
        return Scores(np.roll(scores.logits, 1, axis=-1), scores.features)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        super().commit(draft, verdict)


def test_outputs_that_differ_from_plain_are_counted() -> None:
    report = compare(Forgetful(VOCABULARY), ("suffix:min_probability=1e-6",))
    (entry,) = report["drafters"].values()
    assert entry["different_outputs"] > 0
    assert (
        sum(part["different_outputs"] for part in entry["by_category"].values()) == entry["different_outputs"]
    )


def test_the_baseline_may_be_measured_against_itself() -> None:
    report = compare(drafters=("none",))
    assert report["drafters"]["none"]["different_outputs"] == 0
    assert report["drafters"]["none"]["tau"] == 1


def test_answers_of_one_token_divide_by_nothing() -> None:
    report = compare(params=SamplingParams(temperature=0, max_tokens=1))
    assert report["drafters"]["suffix"]["decode_ratio"] is not None or report["plain"]["tokens"] == 5


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match="prompt 7 has 600 tokens; table takes up to 511"):
        compare(prompts=[*PROMPTS, Prompt("7", "a", ("b" * 600,))])


def test_later_turns_stand_behind_plain_decodings_answers_to_the_earlier_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, list[int]]] = []
    real = speed.answer

    def answer(engine: Any, prompt: Any, params: Any, drafter: str) -> Any:
        answers.append(real(engine, prompt, params, drafter))
        asked.append((drafter, prompt))
        return answers[-1]

    answers: list[Any] = []
    monkeypatch.setattr(speed, "answer", answer)
    prompts = [Prompt("1", "a", ("bcd", "ddc")), *PROMPTS]
    report = compare(prompts=prompts, drafters=("suffix",))
    warm_up = 2
    assert [name for name, _ in asked[warm_up : warm_up + 4]] == ["none", "suffix"] * 2
    first = answers[warm_up].completion.text
    assert first
    assert asked[warm_up + 2][1] == asked[warm_up + 3][1] != asked[warm_up][1]
    said = [{"role": "user", "content": "bcd"}, {"role": "assistant", "content": first}]
    expected = Words().apply_chat_template([*said, {"role": "user", "content": "ddc"}])
    assert asked[warm_up + 2][1] == expected
    assert (report["prompts"], report["answers"]) == (6, 7)
    assert report["drafters"]["suffix"]["by_category"]["a"]["prompts"] == 4


def test_turns_that_might_not_fit_with_their_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"prompt 7 has 5\d\d tokens with the answers in between, 12 each"):
        compare(prompts=[Prompt("7", "a", ("b" * 400, "c" * 100))])


def test_a_report_becomes_a_csv_and_a_page(tmp_path: Path) -> None:
    report = compare() | {"title": "t", "model": "m", "machine": {"cpu": "c", "isa": "i", "threads": 1}}
    lines = export.table(report).splitlines()
    assert len(lines) == 1 + 2 * (1 + 2)
    assert [line.split(",")[0] for line in lines[1:]] == ["suffix"] * 3 + ["ngram"] * 3
    pytest.importorskip("matplotlib")
    export.write(report, speed.table(report), None, None, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<svg") == 1


@pytest.mark.model
def test_the_real_model_is_measured_with_equal_outputs(tmp_path: Path) -> None:
    notes: list[str] = []
    report = speed.run(
        model="smollm2-135m",
        drafters=["suffix"],
        prompts=None,
        limit=3,
        params=SamplingParams(temperature=0, max_tokens=16, seed=0),
        threads=1,
        note=notes.append,
    )
    assert report["model"] == "smollm2-135m"
    assert report["prompts"] == 3
    assert report["drafters"]["suffix"]["different_outputs"] == 0
    assert report["machine"]["threads"] == 1
    assert report["versions"]["numpy"] == np.__version__
    assert notes
    assert "95 % interval" in speed.table(report)
