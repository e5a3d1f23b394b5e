"""bench sweep and its files, on the table target."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from paceline.bench import export, sweep
from paceline.bench.prompts import Prompt
from paceline.bench.recorder import Pass, Recorder, Row, by_position
from paceline.bench.setup import Setup
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.policies.fixed import Fixed
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.bench.test_speed import GREEDY, PROMPTS, Forgetful, Words
from tests.toys import VOCABULARY, Known, Oracle

LISTS = sweep.Lists(nodes=(1, 4), temperature=(0.0, 1.0), batch=(1, 2))


def compare(target: Any = None, lists: sweep.Lists = LISTS, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"prompts": PROMPTS, "params": GREEDY, "note": lambda text: None, **more}
    setup = Setup(target or TableTarget(VOCABULARY), Words())  # type: ignore[arg-type]
    report = sweep.compare(setup, ["suffix"], lists, **options)
    return report | {"title": "t", "model": "m", "machine": {"cpu": "c<", "isa": "i", "threads": 1}}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return compare()


def test_every_combination_is_there_once_and_beside_plain_decoding(report: dict[str, Any]) -> None:
    found = [(one["temperature"], one["batch"], one["nodes"]) for one in report["results"]]
    assert found == [(t, b, n) for t in (0.0, 1.0) for b in (1, 2) for n in (1, 4)]
    assert [(one["temperature"], one["batch"]) for one in report["plain"]] == found[::2] or len(found) == 8
    assert [one["tau"] for one in report["plain"]] == [1] * 4
    assert json.loads(json.dumps(report)) == json.loads(json.dumps(report))


def test_the_figures_agree_with_each_other(report: dict[str, Any]) -> None:
    for one in report["results"]:
        assert one["different_outputs"] == 0
        assert one["ratio_low"] <= one["ratio"] <= one["ratio_high"]
        passes = sum(one["accepted_lengths"].values())
        kept = sum(int(length) * count for length, count in one["accepted_lengths"].items())
        assert one["tau"] == pytest.approx((passes + kept) / passes)
        assert max(map(int, one["accepted_lengths"])) <= one["nodes"]
        assert len(one["acceptance_by_position"]) <= one["nodes"]
        assert one["tokens"] == 12 * (5 // one["batch"] * one["batch"])
        assert bool(one["by_category"]) is (one["batch"] == 1)
    assert len({one["acceptance"] for one in report["results"][:2]}) == 1, "one for all budgets of a drafter"


def test_few_groups_are_too_few_to_claim_anything(report: dict[str, Any]) -> None:
    assert {one["verdict"] for one in report["results"] if one["batch"] == 2} == {"too few"}
    assert "too few" in sweep.table(report)


def test_outputs_that_differ_from_plain_are_counted() -> None:
    report = compare(Forgetful(VOCABULARY), sweep.Lists(nodes=(4,)), prompts=PROMPTS)
    assert report["results"][0]["different_outputs"] > 0


def test_contexts_are_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: set[int] = set()
    real = Engine.submit

    def submit(self: Engine, prompt: Any, *rest: Any) -> int:
        lengths.add(len(prompt))
        return real(self, prompt, *rest)

    monkeypatch.setattr(Engine, "submit", submit)
    compare(lists=sweep.Lists(nodes=(2,), context=(100,)))
    assert max(lengths) == 100
    assert len(lengths) == 2, "the warm-up's and 100"


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        (sweep.Lists(batch=(6,)), "a batch of 6 needs as many prompts, there are 5"),
        (sweep.Lists(context=(501,)), "a context of 501 and answers of 12 tokens are more than the 512"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_is_measured(lists: sweep.Lists, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(lists=lists)


def recorded(drafter: Known) -> list[Pass]:
    target = TableTarget(VOCABULARY)
    plain = Engine(target, {"none": Oracle({})}, drafter="none", nodes=1)
    params = SamplingParams(temperature=0, max_tokens=13, seed=3)
    (done,) = plain.generate([1, 2, 3], params)
    drafter.answers = {3: done.token_ids}
    recorder = Recorder(Fixed())
    Engine(target, {"d": drafter}, drafter="d", policy=recorder, nodes=3).generate([1, 2, 3], params)
    return recorder.passes


def test_the_recorder_notes_every_step() -> None:
    passes = recorded(Oracle({}))
    assert passes[0].reading
    assert passes[0].rows == [Row(0, 0, False)]
    assert [item.rows for item in passes[1:]] == [[Row(3, 3, False)]] * 3
    assert [item.tokens for item in passes[1:]] == [4, 4, 4]
    assert by_position(passes) == [(3, 3)] * 3
    refused = [Pass(5, 0.1, False, [Row(4, 1, True)]), Pass(5, 0.1, False, [Row(4, 0, True)])]
    assert by_position(refused) == [(1, 2), (0, 1)]


def test_the_csv_has_a_line_for_each_result_and_each_of_its_categories(
    report: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "new" / "sweep.csv"
    export.write(report, "", file, None, None)
    lines = list(csv.DictReader(file.read_text().splitlines()))
    assert len(lines) == 8 + 2 * 4
    assert tuple(lines[0]) == export.COLUMNS
    whole = [line for line in lines if not line["category"]]
    assert [float(line["ratio"]) for line in whole] == [one["ratio"] for one in report["results"]]
    assert {line["category"] for line in lines} == {"", "a", "b"}


def test_plots_and_the_page_need_nothing_else(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    export.write(report, "the table <&>", None, tmp_path / "plots", tmp_path / "page.html")
    names = {file.stem for file in (tmp_path / "plots").glob("*.png")}
    assert names == {"nodes", "position", "lengths", "category", "batch", "temperature", "time"}
    assert (tmp_path / "plots" / "nodes.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 7
    assert "the table &lt;&amp;&gt;" in page
    assert "&quot;seed&quot;: 0" in page
    for outside in ("<script", "<link", "<img", "src=", 'href="http', "url(http"):
        assert outside not in page
    ids = [part.split('"', 1)[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_a_missing_matplotlib_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'paceline\[plots\]'"):
        export.check(None, tmp_path, None)
    export.check(tmp_path / "a.csv", None, None)
    with pytest.raises(ConfigError, match="is a folder, expected a file"):
        export.check(tmp_path, None, None)


def test_of_several_turns_the_first_is_swept() -> None:
    prompts = [Prompt("1", "a", ("bcd", "x" * 600))]
    assert compare(lists=sweep.Lists(nodes=(1,)), prompts=prompts)["prompts"] == 1
