"""`paceline train` from the outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_generate import one_line_error

Paceline = Callable[..., Any]
TAPS = ("--taps", "1")


@pytest.fixture
def model(write_gguf: Any) -> str:
    return str(write_gguf({"llama.context_length": 2048}))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the cat {number}"}) + "\n" for number in range(40)))
    return str(path)


def test_data_is_made_and_summed_up(paceline: Paceline, model: str, prompts: str, tmp_path: Path) -> None:
    arguments = ("train", "data", str(tmp_path / "d"), "--model", model, "--prompts", prompts, *TAPS)
    made = paceline(*arguments, "--max-tokens", "8", "--max-tokens-total", "300", "--json")
    assert made.code == 0, made.err
    summary = json.loads(made.out)
    assert summary["tokens"] == summary["new_tokens"] >= 300
    assert summary["shards"] == 1
    assert 0 < summary["answer_tokens"] < summary["tokens"]
    again = paceline(*arguments, "--max-tokens", "8", "--disk-limit", "1M")
    assert again.code == 0, again.err
    assert "answers           40" in again.out


def test_data_of_invented_prompts(paceline: Paceline, model: str, tmp_path: Path) -> None:
    made = paceline(
        "train", "data", str(tmp_path), "--model", model, "--invent", "3", "--max-tokens", "4", *TAPS
    )
    assert made.code == 0, made.err
    assert "answers           3" in made.out
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 3


def test_bad_options_are_one_line(paceline: Paceline, model: str, prompts: str, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        message = one_line_error(paceline("train", "data", str(tmp_path / "d"), "--model", model, *arguments))
        assert not (tmp_path / "d").exists()
        return message

    assert "exclude each other" in refused("--prompts", prompts, "--invent", "3")
    assert "invent must be at least 1" in refused("--invent", "0")
    assert "such as 2,15,27" in refused("--taps", "2;15")
    assert "hidden.0 to hidden.1" in refused("--taps", "2")
    assert "expected a size" in refused("--disk-limit", "much")
    assert "disk_limit must be at least 1" in refused("--disk-limit", "0")
    assert "no.jsonl: No such file" in refused("--prompts", str(tmp_path / "no.jsonl"), *TAPS)
    assert "batch must be at least 1" in refused("--batch", "0")
    assert "would be the same" in refused("--prompts", prompts, "--answers", "3", *TAPS)
    assert "this model takes 2048" in refused("--max-tokens", "2000", *TAPS)
    assert "not a folder" in one_line_error(paceline("train", "data", "d", "--model", str(tmp_path)))


def test_data_whose_making_was_killed_goes_on(
    model: str, prompts: str, tmp_path: Path, own_cache: Path
) -> None:
    command = (sys.executable, "-m", "paceline", "train", "data")
    options = ("--model", model, "--prompts", prompts, "--max-tokens", "64", "--shard-tokens", "300", *TAPS)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    first = subprocess.Popen((*command, str(cut), *options, "--batch", "1"), stderr=subprocess.PIPE)
    while not (cut / "shard-00000.safetensors").exists() and first.poll() is None:
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "it had ended before"
    first.communicate()
    for folder in (cut, whole):
        subprocess.run((*command, str(folder), *options), check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in cut.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_without_pytorch_training_says_what_to_install(
    paceline: Paceline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.cli.train_run.find_spec", lambda name: None)
    message = one_line_error(paceline("train", "run", str(tmp_path), "--out", str(tmp_path / "out")))
    assert "pip install 'paceline[train]'" in message
