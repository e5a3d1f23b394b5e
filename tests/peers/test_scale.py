"""Random models of a given size, and passes over them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale
from paceline.kernels.packing import FORMATS
from paceline.targets.native import NativeTarget

TINY = (64, 2, 2, 1, 32, 96, 160)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scale.SHAPES, "tiny", TINY)
    monkeypatch.setattr(scale, "REPEATS", 1)


def test_sizes_are_what_they_are_called() -> None:
    for size in ("0.1", "0.5", "1", "3"):
        found = scale.parameters(scale.config(size, 256)) / 1e9
        assert float(size) * 0.95 < found < float(size) * 1.36


@pytest.mark.parametrize("kind", scale.KINDS)
def test_a_random_model_runs_and_its_layers_have_memory_of_their_own(kind: str) -> None:
    weights = scale.random_weights(scale.config("tiny", 64), kind)
    addresses = {part.ctypes.data for part in weights.tensors.values() if isinstance(part, np.ndarray)}
    assert len(addresses) == 2 + 2 * 9
    per_weight = FORMATS[kind].bits / 8 + 2 * (1 + FORMATS[kind].minima) / 32
    assert weights.tensors["blk.1.ffn_up.weight"].nbytes == pytest.approx(64 * 96 * per_weight)
    passes = scale.Passes(target := NativeTarget(weights, threads=1, context=64, cache_tokens=192))
    passes.extend(0, 20)
    passes.extend(1, 20)
    draft = passes._draft([0, 1], 20, 3, scored=True)
    logits = np.array(target.forward(draft, frozenset()).logits)
    assert logits.shape == (6, 160)
    assert np.isfinite(logits).all()
    assert logits.std() > 0
    assert all(ms > 0 for ms in passes.milliseconds([(1, 1), (1, 8), (2, 1)], 20))


def test_the_report_holds_every_pass_and_the_memory() -> None:
    report = scale.measure("tiny", "Q4_1", [16, 48], [1, 4], [1, 2], 1)
    shapes = [(one["context"], one["batch"], one["rows"]) for one in report["passes"]]
    assert shapes == [(16, 1, 1), (16, 1, 4), (16, 2, 1), (48, 1, 1), (48, 1, 4)]
    assert report["cache_bytes"] == (48 + 16) * 2 * 2 * 32 * 2
    whole = {
        "machine": {"cpu": "A Processor", "isa": "avx2", "threads": 1},
        "contexts": [16, 48],
        "models": [report],
    }
    assert "in passes over 1" in scale.table(whole)
    assert json.loads(json.dumps(whole)) == whole


def test_an_unknown_size_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        scale.main(["--sizes", "7", "--output", str(tmp_path / "scale.json")])
    assert stop.value.code == 2
    assert "'7' is not known; allowed: 0.1, 0.5, 1, 3" in capsys.readouterr().err
