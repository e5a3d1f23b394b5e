"""The comparison with other engines, on engines that are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import __main__ as program
from benchmarks.peers import contest, environment, process, report
from benchmarks.peers.contender import Contender, Launch, PeerError, Plan
from benchmarks.peers.process import Process

PROMPTS = [[1, 2], [3, 4, 5], [6]]
COLUMNS = {"engine", "version", "weights", "mode", "tokens_per_second", "ratio_to_paceline", "kl", "error"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "PAUSE_S", 0)
    monkeypatch.setattr(contest, "REPEATS", 2)
    monkeypatch.setattr(process, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(process, "MODULES", "tests.peers")


def launch(**settings: Any) -> Launch:
    return Launch(Path(sys.executable), "fake_worker", {"sequences": 1, **settings})


def contender(engine: str, weights: str = "w", mode: str = "plain", **settings: Any) -> Contender:
    return Contender(engine, "1", weights, mode, {"": launch(**settings)})


def raced(
    *contenders: Contender, tokens: int = 4, long_prompt: list[int] | None = None
) -> list[contest.Entry]:
    entries = contest.choose(contenders, PROMPTS, tokens, note=lambda text: None)
    contest.race(entries, PROMPTS, tokens, long_prompt, note=lambda text: None)
    return entries


def test_a_worker_answers_and_what_its_engine_prints_disturbs_nobody() -> None:
    with Process(launch(chatty=True), "fake") as worker:
        assert worker.does == ["answer", "batch", "logits"]
        assert worker.answer([7, 8], 3)["tokens"] == [8, 9, 10]


def test_an_error_is_one_line_and_the_worker_goes_on() -> None:
    with Process(launch(refuses=13), "fake") as worker:
        with pytest.raises(PeerError, match=r"^ValueError: not 13$"):
            worker.answer([13], 2)
        assert worker.answer([14], 2)["tokens"] == [14, 15]


def test_a_worker_that_crashes_says_how() -> None:
    with (
        Process(launch(crashes=13), "fake") as worker,
        pytest.raises(PeerError, match="ended with 3: last words"),
    ):
        worker.answer([13], 2)


def test_a_worker_that_does_not_start_says_why() -> None:
    with pytest.raises(PeerError, match=r"^TypeError: .*unknown"):
        Process(launch(unknown=1), "fake")


def test_a_worker_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with Process(launch(slow={"1": 60}), "fake") as worker:
        monkeypatch.setattr(process, "LIMIT_S", 0.1)
        with pytest.raises(PeerError, match=r"no reply within 0\.1 s"):
            worker.answer([1], 1)


def test_too_few_tokens_are_an_error() -> None:
    with (
        Process(launch(short=True), "fake") as worker,
        pytest.raises(PeerError, match="expected 4 tokens, got 3"),
    ):
        worker.answer([1], 4)


def test_all_get_the_same_prompts_in_turn_and_everyone_goes_first(tmp_path: Path) -> None:
    log = tmp_path / "log"
    raced(*(contender(name, log=str(log), name=name) for name in "abc"))
    asked = [json.loads(line) for line in log.read_text().splitlines()][3:]  # without the warm-up
    rounds = [asked[at : at + 3] for at in range(0, 9, 3)]
    assert [{who for who, _ in turn} for turn in rounds] == [set("abc")] * 3
    assert [[prompt for _, prompt in turn] for turn in rounds] == [[prompt] * 3 for prompt in PROMPTS]
    assert len({turn[0][0] for turn in rounds}) > 1


def test_the_fastest_variant_takes_part_and_failing_ones_are_told() -> None:
    variants = {"slow": launch(slow={"*": 0.05}), "fast": launch(), "bad": launch(unknown=1)}
    (entry,) = contest.choose([Contender("e", "1", "w", "plain", variants)], PROMPTS, 4, lambda text: None)
    assert entry.setting == "fast"
    assert isinstance(entry.trials["slow"], float)
    assert "TypeError" in str(entry.trials["bad"])


def test_a_mode_takes_over_the_settings_that_plain_decoding_was_fastest_with() -> None:
    plain = {"slow": launch(slow={"*": 0.05}, shift=1), "fast": launch(shift=2)}
    drafted = Contender("e", "1", "w", "lookup", changes={"draft 4": {"name": "4"}})
    other = Contender("e", "1", "v", "lookup", changes={"draft 4": {"name": "4"}})
    given = [Contender("e", "1", "w", "plain", plain), drafted, other]
    _, lookup, lost = contest.choose(given, PROMPTS, 4, lambda text: None)
    assert lookup.setting == "fast and draft 4"
    assert lookup.launch == launch(shift=2, name="4")
    assert "plain decoding" in str(lost.error)


def test_who_fails_on_the_way_is_out_and_the_others_go_on() -> None:
    good, bad, absent = raced(
        contender("Paceline"), contender("bad", crashes=3), Contender("absent", "1", None, None, error="gone")
    )
    assert len(good.answers) == 3
    assert good.error is None
    assert "ended with 3" in str(bad.error)
    rows = report.rows([good, bad, absent], 1024)
    assert [row["error"] is None for row in rows] == [True, False, False]
    assert rows[2]["error"] == "gone"
    assert all(set(row) >= COLUMNS for row in rows)
    assert json.loads(json.dumps(rows)) == rows


def test_a_ratio_below_one_is_slower_than_plain_paceline() -> None:
    entries = raced(
        contender("Paceline", slow={"*": 0.02}),
        contender("Paceline", mode="suffix"),
        contender("rival", slow={"*": 0.05}),
        contender("rival", mode="lookup", slow={"*": 0.04}, shift=1),
    )
    own, drafted, rival, lookup = report.rows(entries, 1024)
    assert own["ratio_to_paceline"] == 1
    assert drafted["ratio_to_paceline"] > 1 > rival["ratio_to_paceline"]
    assert rival["ratio_low"] <= rival["ratio_to_paceline"] <= rival["ratio_high"]
    assert (drafted["different_outputs"], lookup["different_outputs"]) == (0, 3)
    best = report.summary(entries, [own, drafted, rival, lookup])
    assert best is not None
    assert (best["paceline"]["mode"], best["rival"]["mode"]) == ("suffix", "lookup")
    assert best["ratio"] > 1


def test_a_rival_that_is_fast_and_bad_is_not_the_one_to_beat() -> None:
    entries = raced(contender("Paceline"), contender("bad"), contender("good", slow={"*": 0.03}))
    rows = report.rows(entries, 1024)
    for row, kl in zip(rows, (0.003, 0.3, 0.005), strict=True):
        row["kl"] = kl
    best = report.summary(entries, rows)
    assert best is not None
    assert best["rival"]["engine"] == "good"


def test_streams_are_counted_together() -> None:
    entries = raced(
        contender("Paceline"), contender("rival", slow={"*": 0.05}), contender("rival", mode="other")
    )
    contest.batches(entries, PROMPTS, 4, (2, 4), lambda text: None)
    own, rival, other = entries
    assert list(own.batches) == ["2", "4"]
    assert own.batches["4"] > rival.batches["4"] > 0
    assert other.batches == {}


def test_streams_that_fail_leave_the_other_figures_alone() -> None:
    entries = raced(contender("Paceline", fails_batches=True), contender("rival"))
    contest.batches(entries, PROMPTS, 4, (2,), lambda text: None)
    own, rival = report.rows(entries, 1024)
    assert own["tokens_per_second"] > 0
    assert own["batches"] == {}
    assert own["remarks"][0] == "2 streams: MemoryError: too many"
    assert rival["batches"]["2"] > 0


def test_reading_a_long_prompt_is_timed_for_plain_ones() -> None:
    entries = raced(contender("Paceline"), contender("Paceline", mode="suffix"), long_prompt=list(range(9)))
    own, drafted = report.rows(entries, 9)
    assert own["prefill_tokens_per_second"] > 0
    assert drafted["prefill_tokens_per_second"] is None


def test_modes_share_the_law_of_their_weights() -> None:
    entries = raced(
        contender("same"),
        contender("same", mode="lookup"),
        contender("other", noise=0.5),
        contender("dumb", mute=True),
    )
    texts = [([1, 2, 3, 4], 2), ([5, 6, 7], 1)]
    contest.laws(entries, launch(), texts, lambda text: None)
    same, lookup, other, dumb = entries
    assert same.kl == lookup.kl == pytest.approx(0, abs=1e-9)
    assert same.top1 == 1
    assert other.kl is not None
    assert other.kl > 0.01
    assert dumb.kl is None


def test_an_unknown_rival_is_one_line_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--only", "llama_cpp,nobody"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "'nobody'" in captured.err
    assert "llama_cpp" in captured.err


def test_every_adapter_has_a_worker_and_says_who_it_is() -> None:
    for name in (*program.rivals(), program.OWN):
        adapter = __import__(f"benchmarks.peers.adapters.{name}", fromlist=["ENGINE"])
        assert adapter.ENGINE
        assert adapter.VERSION
        assert (program.ADAPTERS.parent / "workers" / f"{name}.py").exists()


def plan(**changes: Any) -> Plan:
    standard: dict[str, Any] = {
        "model": Path(__file__),
        "own_weights": "Q4_1",
        "context": 256,
        "threads": 1,
        "drafters": ("suffix",),
        "assistant": None,
        "llama_pythons": (),
        "llama_servers": (),
        "chosen": ("paceline",),
        "note": lambda text: None,
    }
    return Plan(**{**standard, **changes})


def test_a_rival_that_cannot_be_installed_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "BUILD", tmp_path)
    monkeypatch.setattr(environment, "LOGS", tmp_path)
    monkeypatch.setattr(environment.venv, "create", lambda *a, **k: None)

    def fails(name: str, words: Any, variables: Any = None) -> None:
        raise PeerError("ERROR: No matching distribution found")

    monkeypatch.setattr(environment, "command", fails)
    found = program.found(plan(chosen=("paceline", "flashspec", "llama_server")))
    assert [(one.engine, one.mode) for one in found if one.error is None] == [
        ("Paceline", "plain"),
        ("Paceline", "suffix"),
    ]
    errors = {one.engine: one.error for one in found if one.error}
    assert errors["FlashSpec"] == "ERROR: No matching distribution found"
    assert "--llama-server" in str(errors["llama-server"])


def test_a_command_that_fails_tells_its_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "LOGS", tmp_path)
    code = "print('ERROR: no compiler'); print('bye'); raise SystemExit(4)"
    with pytest.raises(PeerError, match="ended with 4: ERROR: no compiler"):
        environment.command("fake", [sys.executable, "-c", code])


def test_what_is_made_appears_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "BUILD", tmp_path)
    monkeypatch.setattr(environment, "LOGS", tmp_path)
    target = tmp_path / "weights" / "file"
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('x'); sys.exit({})"
    with pytest.raises(PeerError):
        environment.made(plan(), target, "fake", [sys.executable, "-c", write.format(1)])
    assert not target.exists()
    environment.made(plan(), target, "fake", [sys.executable, "-c", write.format(0)])
    assert target.read_text() == "x"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(f"#!{sys.executable}\n" + Path(__file__).with_name("fake_server.py").read_text())
    path.chmod(0o755)
    return path


def test_a_server_is_asked_over_http(server: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "MODULES", "benchmarks.peers.workers")
    found = program.found(plan(chosen=("llama_server",), llama_servers=(server,)))
    assert [one.mode for one in found] == ["plain", "ngram-mod"]
    assert {one.version for one in found} == {"version: 77 (fake)"}
    (ready,) = found[1].variants.values()
    with Process(ready, "server") as worker:
        reply = worker.answer([5, 6], 3)
        assert reply["tokens"] == [6, 7, 8]
        assert 0 < reply["first_s"] < reply["seconds"]


def test_logits_compare_as_distributions() -> None:
    from benchmarks.law import compare

    exact = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25]], np.float32))
    kl, same = compare(exact, other)
    assert kl[0] == pytest.approx(0.25 * np.log(2), abs=1e-6)
    assert not same[0]
