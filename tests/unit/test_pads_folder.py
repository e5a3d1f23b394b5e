"""Folders of pads, and what is wrong with one named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paceline.errors import IncompatibleDrafter, ModelFileError
from paceline.models.pads_folder import PadsConfig, read_pads
from paceline.models.safetensors_file import write_safetensors
from paceline.trained.load import load_trained
from tests.pads import folder_of, random_pads, tensors_of

SMALL = PadsConfig(hidden=8, depths=2, vocab_size=20, draft_vocab_size=6)
WEIGHTS = random_pads(SMALL)


def write(folder: Path, config: dict[str, Any], held: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", held)
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    again = read_pads(folder_of(WEIGHTS, tmp_path / "pads"))
    assert again.config == SMALL
    np.testing.assert_array_equal(again.embeddings, WEIGHTS.embeddings)
    np.testing.assert_array_equal(again.token_ids, WEIGHTS.token_ids)


def test_pads_of_all_tokens_need_no_map(tmp_path: Path) -> None:
    weights = random_pads(replace(SMALL, draft_vocab_size=20))
    held = tensors_of(weights)
    del held["token_map"]
    again = read_pads(write(tmp_path / "pads", weights.config.described, held))
    assert again.token_ids.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "medusa"}, r'config.json: model_type is "medusa", expected "pads"'),
        ({"hidden_size": None}, "hidden_size is null, expected a whole number above 0"),
        ({"num_pads": 17}, "num_pads is 17, expected at most 16"),
        ({"num_pads": 3}, "tensor embeddings.2 is missing"),
        ({"num_pads": 1}, "a drafter of this kind has no tensor embeddings.1"),
        ({"hidden_size": 9}, r"embeddings.0 is float32 \[8\], expected floats \[9\]"),
        ({"vocab_size": 5}, "truncated_vocab_size is 6, expected at most the target's 5 tokens"),
        ({"vocab_size": 18}, "token_map does not name different tokens below 18"),
        ({"truncated_vocab_size": 7}, r"token_map is int64 \[6\], expected whole numbers \[7\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_pads(write(tmp_path / "a", {**SMALL.described, **changes}, tensors_of(WEIGHTS)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("token_map"), "tensor token_map is missing"),
        (lambda held: held.update(token_map=np.zeros(6, np.int64)), "does not name different tokens"),
        (lambda held: held.update({"embeddings.1": np.full(8, np.inf, np.float32)}), "are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    held = tensors_of(WEIGHTS)
    change(held)
    with pytest.raises(ModelFileError, match=message):
        read_pads(write(tmp_path / "a", SMALL.described, held))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config.json cannot be read: No such file"):
        read_pads(tmp_path / "nowhere")
    path = write(tmp_path, SMALL.described, tensors_of(WEIGHTS)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"is damaged: .*the file is cut off"):
        read_pads(tmp_path)
    path.unlink()
    with pytest.raises(ModelFileError, match=r"there is no model.safetensors"):
        read_pads(tmp_path)


def test_a_target_that_reads_no_pads_is_refused(tmp_path: Path) -> None:
    target: Any = SimpleNamespace(info=SimpleNamespace(name="another"))
    with pytest.raises(IncompatibleDrafter, match="needs a target that reads pads; another does not"):
        load_trained("pads", folder_of(WEIGHTS, tmp_path / "pads"), target)
