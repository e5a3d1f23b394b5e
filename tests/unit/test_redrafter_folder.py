"""Folders of recurrent drafters, and what is wrong with one named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ModelFileError
from paceline.models.drafter_kinds import kind_of
from paceline.models.redrafter_folder import RedrafterConfig, read_redrafter
from paceline.models.safetensors_file import write_safetensors
from tests.redrafter import folder_of, random_drafter

SMALL = RedrafterConfig(hidden=8, inner=4, layers=2, depths=3, vocab_size=20, draft_vocab_size=6)


def small() -> dict[str, Any]:
    """Tensors as SMALL describes them."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in SMALL.shapes.items()
    }
    return {**made, "token_map": np.array([1, 4, 5, 9, 17, 19])}


def write(folder: Path, config: dict[str, Any], held: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", held)
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    weights = random_drafter()
    folder = folder_of(weights, tmp_path / "drafter")
    assert kind_of(folder) == "redrafter"
    again = read_redrafter(folder)
    assert again.config == weights.config
    assert again.token_ids.tolist() == weights.token_ids.tolist()
    assert again.tensors.keys() == weights.tensors.keys() == weights.config.shapes.keys()
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "hydra"}, r'config.json: model_type is "hydra", expected "redrafter"'),
        ({"hidden_size": None}, "hidden_size is null, expected a whole number above 0"),
        ({"intermediate_size": 0}, "intermediate_size is 0, expected a whole number above 0"),
        ({"num_hidden_layers": 17}, "num_hidden_layers is 17, expected at most 16"),
        ({"num_draft_tokens": 17}, "num_draft_tokens is 17, expected at most 16"),
        ({"vocab_size": 5}, "truncated_vocab_size is 6, expected at most the target's 5 tokens"),
        ({"vocab_size": 18}, "token_map does not name different tokens below 18"),
        ({"truncated_vocab_size": 7}, r"token_map is int64 \[6\], expected whole numbers \[7\]"),
        ({"hidden_size": 9}, r"layers.0.gate.weight is float32 \[4, 16\], expected floats \[4, 18\]"),
        ({"num_hidden_layers": 3}, "tensor layers.2.gate.weight is missing"),
        ({"num_hidden_layers": 1}, "a drafter of this kind has no tensor layers.1.down.weight"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_redrafter(write(tmp_path / "a", {**SMALL.described, **changes}, small()))


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("token_map"), "tensor token_map is missing"),
        (put("token_map", np.array([1, 1, 2, 3, 4, 5])), "does not name different tokens below 20"),
        (put("lm_head.weight", np.ones((5, 8), np.float32)), r"lm_head.weight is float32 \[5, 8\]"),
        (put("layers.0.up.weight", np.full((4, 16), np.nan, np.float32)), "that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    held = small()
    change(held)
    with pytest.raises(ModelFileError, match=message):
        read_redrafter(write(tmp_path / "a", SMALL.described, held))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config.json cannot be read: No such file"):
        read_redrafter(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(SMALL.described))
    with pytest.raises(ModelFileError, match=r"there is no model.safetensors"):
        read_redrafter(tmp_path)
    path = write(tmp_path, SMALL.described, small()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"is damaged: .*the file is cut off"):
        read_redrafter(tmp_path)
