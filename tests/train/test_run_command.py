"""`paceline train run` as a program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from paceline.cli.main import run
from tests.train.conftest import Make

OPTIONS = ("--arch", "eagle3:depths=2,draft_vocab=200", "--batch-tokens", "200", "--checkpoint-every", "1")


@pytest.fixture
def data(make: Make, tmp_path: Path) -> Path:
    make(tmp_path / "data")
    return tmp_path / "data"


def test_a_drafter_is_trained_and_summed_up(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", "run", str(data), "--out", str(tmp_path / "out"), *OPTIONS)
    assert run(arguments) == 0
    assert "estimated τ over held-out answers" in capsys.readouterr().out
    assert "Licence: not said." in (tmp_path / "out" / "card.md").read_text()
    assert run((*arguments, "--json", "--license", "Apache-2.0")) == 0
    card = json.loads(capsys.readouterr().out)
    assert card == json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["steps"] == card["estimate"]["step"]
    assert "Licence: Apache-2.0." in (tmp_path / "out" / "card.md").read_text()


def test_curves_are_written_for_tensorboard(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", "run", str(data), "--out", str(tmp_path / "out"), *OPTIONS, "--tensorboard")
    arguments += ("--log-every", "1")
    if find_spec("tensorboard") is not None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        assert run(arguments) == 0
        found = EventAccumulator(str(tmp_path / "out" / "curves")).Reload()
        lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
        losses = [line["loss"][1] for line in lines if "loss" in line]
        assert [one.value for one in found.Scalars("training/loss, depth 2")] == pytest.approx(losses)
        assert found.Scalars("held out/tau_greedy")
    monkeypatch.setattr("paceline.train.curves.find_spec", lambda name: None)
    assert run(arguments) == 2
    assert "--tensorboard needs TensorBoard: pip install tensorboard" in capsys.readouterr().err


def test_misuse_is_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for arguments, message in (
        ((str(data), "--out", str(out), "--threads", "0"), "threads must be at least 1"),
        ((str(data), "--out", str(out), "--clip", "0"), "clip is 0.0, allowed"),
        ((str(tmp_path), "--out", str(out)), "`paceline train data` makes data sets"),
        ((str(data),), "Missing option '--out'"),
    ):
        assert run(("train", "run", *arguments)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not out.exists()


def test_a_run_that_was_killed_ends_in_the_same_drafter(data: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "paceline", "train", "run", str(data), *OPTIONS, "--epochs", "2")
    options = ("--threads", "1")
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    first = subprocess.Popen((*command, "--out", str(cut), *options), stderr=subprocess.PIPE)
    while not (cut / "training" / "checkpoint.json").exists() and first.poll() is None:
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL, "it had ended before"
    for folder in (cut, whole):
        subprocess.run((*command, "--out", str(folder), *options), check=True, capture_output=True)
    names = ("config.json", "model.safetensors")
    assert [(cut / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]
