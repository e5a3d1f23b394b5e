"""Several processes make one run: the drafter of one process that reads all they read."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paceline.errors import ConfigError
from paceline.train.loop import Run
from paceline.train.processes import Processes
from paceline.train.settings import Settings
from tests.train.conftest import Make

ARCH = "eagle3:depths=2,draft_vocab=200"
OPTIONS = ("--arch", ARCH, "--batch-tokens", "100", "--dtype", "float32", "--ema", "0.5", "--threads", "1")
OPTIONS += ("--checkpoint-every", "2", "--log-every", "1")

needs_accelerate = pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")
psutil: Any = importlib.import_module("psutil") if find_spec("psutil") else None  # comes with accelerate


def launched(data: Path, out: Path, count: int, *more: str) -> subprocess.Popen[str]:
    """A run of so many processes. On CPUs accelerate leaves starting them to torchrun or MPI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ("torch.distributed.run", "--nproc_per_node", str(count), "--master_port", str(port), "-m")
    alone = ("paceline", "train", "run", str(data), "--out", str(out), *OPTIONS, *more, "--json")
    return subprocess.Popen(
        [sys.executable, "-m", *(launch if count > 1 else ()), *alone],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def trained(data: Path, out: Path, count: int, *more: str) -> dict[str, Tensor]:
    """The weights of such a run, which one process reports."""
    said, error = (process := launched(data, out, count, *more)).communicate(timeout=240)
    assert process.returncode == 0, error
    card = json.loads(said)
    assert card == json.loads((out / "card.json").read_text())
    assert card["device"] == ("cpu" if count == 1 else f"{count} x cpu")
    return load_file(out / "model.safetensors")


def apart(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """How far two drafters' weights are apart, on the average of the matrix where it is most. Weights are
    rounded to bfloat16, so single ones may differ by a step of that."""
    assert left.keys() == right.keys()
    return max(float((left[name].float() - right[name].float()).abs().mean()) for name in left)


@needs_accelerate
def test_two_processes_make_the_drafter_that_one_makes(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "data")
    data, more = tmp_path / "data", ("--accumulate", "3")  # the second process has one pass of three
    alone = trained(data, tmp_path / "alone", 1, *more)
    together = trained(data, tmp_path / "together", 2, *more)
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("alone", "together")]
    assert len(lines[0]) == len(lines[1]) > 3
    for one, other in zip(*lines, strict=True):
        if "loss" in json.loads(one):
            assert json.loads(one)["loss"] == pytest.approx(json.loads(other)["loss"], abs=2e-3)
    fewer = trained(data, tmp_path / "fewer", 1, "--accumulate", "2")
    assert apart(alone, together) < apart(alone, fewer) / 100, "as near as rounding, where passes matter"


@needs_accelerate
def test_a_run_of_two_that_was_killed_ends_in_the_same_drafter(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "data")
    data, more = tmp_path / "data", ("--accumulate", "2", "--epochs", "4")
    whole = trained(data, tmp_path / "whole", 2, *more)
    cut = tmp_path / "cut"
    process = launched(data, cut, 2, *more)
    deadline = time.monotonic() + 120
    while not (cut / "log.jsonl").exists() or len((cut / "log.jsonl").read_text().splitlines()) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    all_of_them = [process, *psutil.Process(process.pid).children(recursive=True)]
    assert len(all_of_them) > 2
    for one in all_of_them:
        os.kill(one.pid, signal.SIGKILL)
    process.communicate()
    assert not (cut / "config.json").exists(), "it had ended before"
    again = trained(data, cut, 2, *more)
    assert apart(whole, again) == 0


def test_what_several_processes_cannot_do_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "data")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="device is 'cuda:1', allowed for 2 processes: cpu, cuda"):
        Processes("cuda:1")
    monkeypatch.setattr("paceline.train.processes.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="several processes need accelerate: pip install accelerate"):
        Processes("cpu")
    monkeypatch.setattr("paceline.train.loop.Processes", lambda device: _Two())
    with pytest.raises(ConfigError, match=r"accumulate is 1, allowed for 2 processes.*: 2 or more"):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch=ARCH, accumulate=1))
    assert not (tmp_path / "out").exists()


class _Two(Processes):
    def __init__(self) -> None:
        self.index, self.count, self.device, self._state = 0, 2, "cpu", None


def test_every_pass_is_one_process_s_and_alone_nothing_is_added() -> None:
    two = [_Two(), _Two()]
    two[1].index = 1
    parts = [list(one.share(range(7))) for one in two]
    assert sorted(parts[0] + parts[1]) == list(range(7))
    assert [one.first for one in two] == [True, False]
    alone, weight = Processes("cpu"), torch.ones(3, requires_grad=True)
    weight.sum().backward()
    alone.add_up([weight, torch.ones(2)])
    assert weight.grad is not None
    assert weight.grad.tolist() == [1, 1, 1]
    assert alone.total([1.5]) == [1.5]
