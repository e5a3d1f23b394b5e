"""The measurement for GPUs runs, on a tiny model on the CPU."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu, scale


def test_one_command_measures_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.SIZES, "tiny", (32, 3, 4, 2, 8, 48, 96))
    monkeypatch.setattr(scale, "REPEATS", 1)
    monkeypatch.setattr(gpu, "COPIES", 1)
    sizes = ("--rows", "1,4", "--batches", "1,2", "--context", "16", "--copied", "65536")
    gpu.main(["--sizes", "tiny", "--device", "cpu", "--tokens", "12", "--prompts", "2", *sizes])
    report = json.loads(capsys.readouterr().out)
    (of,) = report["models"]
    assert of["identity"] == {
        "rows=16": {"answers": 2, "differing": 0}, "any rows": {"answers": 2, "differing": 0}
    }  # fmt: skip
    assert [(one["batch"], one["rows"]) for one in of["passes"]] == [(1, 1), (1, 4), (2, 1)]
    assert all(min(one["ms"], one["eager_ms"]) > 0 for one in of["passes"])
    assert {name for name, one in of["answers"].items() if one["differing"]} == set()
    assert {name for name in of["answers"] if name.startswith("ours")} >= {"ours, plain", "ours, 60% right"}
    assert of["host_ms_per_step"] > 0
