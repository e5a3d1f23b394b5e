"""`paceline train average`: the mean of drafters' weights, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.cli.main import run as run_program
from paceline.models.redrafter_folder import RedrafterWeights, read_redrafter
from paceline.models.safetensors_file import write_safetensors
from tests.redrafter import CONFIG, folder_of, random_drafter

CARD: dict[str, Any] = {
    "license": "MIT",
    "target": "small",
    "target_sha256": "ab",
    "vocabulary": "cd",
    "settings": {"arch": "redrafter:depths=3", "learning_rate": 0.1},
    "data": {
        **{"answers": 2, "tokens": 30, "answer_tokens": 20, "temperatures": [0.0]},
        "prompts_sha256": "ef",
    },
    "steps": 7,
    "trained_tokens": 3000,
    "seconds": 9.5,
    "device": "cpu",
    "parameters": 5,
    "bytes": 6,
    "estimate": {"step": 7, "agreement": [0.5], "overlap": [0.4]},
    "curve": [],
    "measured": [{"tau": 9}],
}


def like(first: RedrafterWeights, seed: int) -> RedrafterWeights:
    """Other weights for the same tokens."""
    return replace(random_drafter(seed=seed), token_ids=first.token_ids)


def trained(weights: RedrafterWeights, folder: Path, **card: Any) -> Path:
    folder_of(weights, folder)
    (folder / "card.json").write_text(json.dumps(CARD | card))
    return folder


def test_weights_are_the_mean_and_the_card_says_of_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = random_drafter(seed=1)
    made = [first, like(first, 2), like(first, 3)]
    folders = [trained(one, tmp_path / f"{place}", steps=place) for place, one in enumerate(made)]
    arguments = ("train", "average", *map(str, folders), "--out", str(tmp_path / "mean"))
    assert run_program(arguments) == 0
    assert "the mean of 3" in capsys.readouterr().out
    mean = read_redrafter(tmp_path / "mean")
    assert (mean.token_ids == first.token_ids).all()
    for name, tensor in mean.tensors.items():
        wanted = np.mean([one.tensors[name] for one in made], 0, np.float64)
        np.testing.assert_allclose(tensor, wanted, rtol=1e-6)
        assert np.abs(tensor - first.tensors[name]).max() > 0.01
    card = json.loads((tmp_path / "mean" / "card.json").read_text())
    assert [one["steps"] for one in card["averaged"]] == [0, 1, 2]
    assert card["license"] == "MIT"
    assert "measured" not in card, "it was of the last one"
    assert card["bytes"] == (tmp_path / "mean" / "model.safetensors").stat().st_size
    assert "Its weights are the mean" in (tmp_path / "mean" / "card.md").read_text()
    assert run_program(arguments) == 2
    assert "holds a drafter; choose another folder" in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"")
    assert run_program((*arguments[:-1], str(tmp_path / "file" / "mean"))) == 2
    assert "cannot be written: " in capsys.readouterr().err


def test_of_halves_the_mean_is_rounded_to_halves(tmp_path: Path) -> None:
    weights = random_drafter()
    folders = []
    for place, bits in enumerate((0x3F80, 0x3F82)):  # 1 and 1 + 2 / 128
        folder = trained(weights, tmp_path / f"{place}")
        halves = {name: np.full(shape, bits, np.uint16) for name, shape in CONFIG.shapes.items()}
        write_safetensors(folder / "model.safetensors", {**halves, "token_map": weights.token_ids})
        folders.append(str(folder))
    assert run_program(("train", "average", *folders, "--out", str(tmp_path / "mean"))) == 0
    for tensor in read_redrafter(tmp_path / "mean").tensors.values():
        assert (tensor == 1 + 1 / 128).all()


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *folders: Path) -> str:
    out = tmp_path / "mean"
    assert run_program(("train", "average", *map(str, folders), "--out", str(out))) == 2
    assert not out.exists(), "nothing is half written"
    return capsys.readouterr().err


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_drafter()
    good = trained(weights, tmp_path / "good")
    assert "is of 2 different drafters or more" in refused(tmp_path, capsys, good)
    assert "is of 2 different drafters or more" in refused(tmp_path, capsys, good, good)
    assert "nowhere" in refused(tmp_path, capsys, good, tmp_path / "nowhere")

    other = trained(random_drafter(replace(CONFIG, inner=32)), tmp_path / "shape")
    assert f"{other}: is of another shape or kind than {good}" in refused(tmp_path, capsys, good, other)
    other = trained(weights, tmp_path / "target", target_sha256="xy")
    assert f"{other}: was trained for another target than {good}" in refused(tmp_path, capsys, good, other)
    other = trained(random_drafter(seed=5), tmp_path / "tokens")
    assert "token_map is other than in" in refused(tmp_path, capsys, good, other)
    other = trained(weights, tmp_path / "tensor")
    write_safetensors(other / "model.safetensors", {"token_map": weights.token_ids})
    assert "is missing, expected [" in refused(tmp_path, capsys, good, other)
    other = trained(weights, tmp_path / "cut")
    data = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(data[:-8])
    assert str(other) in refused(tmp_path, capsys, good, other)
    (other / "card.json").write_text("{}")
    assert "card.json: has no target_sha256" in refused(tmp_path, capsys, good, other)
