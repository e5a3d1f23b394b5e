"""Folders of Medusa heads, and what is wrong with one named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError, ModelFileError
from paceline.models.eagle3_folder import read_eagle3
from paceline.models.heads_folder import read_heads
from paceline.models.safetensors_file import write_safetensors
from paceline.trained.heads_export import compare, export_heads
from tests.heads import CONFIG, folder_of, random_heads

SMALL = replace(CONFIG, hidden=8, depths=2, layers=1, vocab_size=20, draft_vocab_size=6)
WEIGHTS = random_heads(replace(SMALL, hidden=32))


def small() -> dict[str, Any]:
    """Tensors of heads as SMALL describes them."""
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
    again = read_heads(folder_of(WEIGHTS, tmp_path / "heads"))
    assert again.config == WEIGHTS.config
    assert again.token_ids.tolist() == WEIGHTS.token_ids.tolist()
    assert again.tensors.keys() == WEIGHTS.tensors.keys() == WEIGHTS.config.shapes.keys()
    for name, tensor in WEIGHTS.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)


def test_whole_heads_and_old_names_are_read_too(tmp_path: Path) -> None:
    """Rows of all tokens of which a map takes some, as vLLM takes them; and its older prefix."""
    held = small()
    whole = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)
    old = {f"medusa_heads.{name}": tensor for name, tensor in held.items()}
    old["medusa_heads.lm_heads.0.weight"] = whole
    found = read_heads(write(tmp_path / "a", SMALL.described, old))
    np.testing.assert_array_equal(found.tensors["lm_heads.0.weight"], whole[held["token_map"]])
    plain = {**SMALL.described, "truncated_vocab_size": None}
    found = read_heads(write(tmp_path / "b", plain, {**held, "lm_heads.0.weight": whole}))
    assert found.token_ids.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "eagle"}, r'config.json: model_type is "eagle", expected "medusa" or "hydra"'),
        ({"model_type": None}, r'model_type is null, expected "medusa" or "hydra"'),
        ({"hidden_size": None}, "hidden_size is null, expected a whole number above 0"),
        ({"num_heads": 0}, "num_heads is 0, expected a whole number above 0"),
        ({"num_heads": 17}, "num_heads is 17, expected at most 16"),
        ({"num_hidden_layers": "1"}, 'num_hidden_layers is "1", expected a whole number'),
        ({"vocab_size": 5}, "truncated_vocab_size is 6, expected at most the target's 5 tokens"),
        ({"medusa_fc_bias": 1}, "medusa_fc_bias is 1, expected true or false"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5, expected 1"),
        ({"hidden_size": 9}, r"blocks.0.layers.0.weight is float32 \[8, 8\], expected floats \[9, 9\]"),
        ({"num_heads": 3}, "tensor blocks.2.layers.0.weight is missing"),
        ({"num_heads": 1}, "have no tensor blocks.1.layers.0.bias"),
        ({"original_lm_head": False}, "tensor lm_heads.1.weight is missing"),
        ({"vocab_size": 18}, "token_map does not name different tokens below 18"),
        ({"truncated_vocab_size": 7}, r"token_map is int64 \[6\], expected whole numbers \[7\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_heads(write(tmp_path / "a", {**SMALL.described, **changes}, small()))


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("token_map"), "tensor token_map is missing"),
        (put("token_map", np.array([1, 1, 2, 3, 4, 5])), "does not name different tokens below 20"),
        (put("token_map", np.array([-1, 1, 2, 3, 4, 5])), "does not name different tokens below 20"),
        (put("token_map", np.ones(6, np.float32)), r"token_map is float32 \[6\], expected whole numbers"),
        (put("lm_heads.0.weight", np.ones((5, 8), np.float32)), r"lm_heads.0.weight is float32 \[5, 8\]"),
        (put("blocks.0.layers.0.weight", np.full((8, 8), np.nan, np.float32)), "that are not finite"),
        (put("lm_heads.1.weight", np.ones((6, 8), np.float32)), "have no tensor lm_heads.1.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    held = small()
    change(held)
    with pytest.raises(ModelFileError, match=message):
        read_heads(write(tmp_path / "a", SMALL.described, held))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config.json cannot be read: No such file"):
        read_heads(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config.json is damaged"):
        read_heads(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL.described))
    with pytest.raises(ModelFileError, match=r"there is no model.safetensors"):
        read_heads(tmp_path)
    path = write(tmp_path, SMALL.described, small()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"is damaged: .*the file is cut off"):
        read_heads(tmp_path)


def test_hydras_first_layers_are_wider(tmp_path: Path) -> None:
    wide = random_heads(replace(SMALL, kind="hydra", hidden=32, layers=2))
    found = read_heads(folder_of(wide, tmp_path / "heads"), "hydra")
    assert found.config == wide.config
    shapes = {
        name: found.tensors[f"blocks.{name}.weight"].shape
        for name in ("0.layers.0", "1.layers.0", "1.layers.1")
    }
    assert shapes == {"0.layers.0": (32, 64), "1.layers.0": (32, 96), "1.layers.1": (32, 32)}
    with pytest.raises(ModelFileError, match=r'model_type is "hydra", expected "medusa"'):
        read_heads(tmp_path / "heads", "medusa")
    with pytest.raises(ModelFileError, match=r"float32 \[8, 8\], expected floats \[8, 16\]"):
        read_heads(write(tmp_path / "a", replace(SMALL, kind="hydra").described, small()))


def test_an_export_reads_back_as_the_same_heads(tmp_path: Path) -> None:
    written = export_heads(WEIGHTS, "vllm", tmp_path / "out", "org/model")
    assert written.difference == 0
    assert written.config == WEIGHTS.config.described
    assert '"method": "medusa"' in written.command
    assert '"num_speculative_tokens": 2' in written.command
    again = read_heads(written.folder)
    assert again.token_ids.tolist() == WEIGHTS.token_ids.tolist()


def test_other_heads_would_be_noticed() -> None:
    """The twin: what compares exports sees one weight in each tensor."""
    for kind in ("hydra", "medusa"):
        weights = random_heads(replace(SMALL, kind=kind, hidden=32, shared=False))
        for name in weights.tensors:
            other = {key: np.array(tensor) for key, tensor in weights.tensors.items()}
            other[name].flat[5] += 0.02
            assert compare(weights, replace(weights, tensors=other)) > 1e-5, name


@pytest.mark.parametrize(
    ("kind", "to", "target", "message"),
    [
        ("medusa", "vllm", "", "name it with --target"),
        ("medusa", "sglang", "t", "sglang does not load medusa heads"),
        ("hydra", "vllm", "t", "vllm does not load hydra heads"),
    ],
)
def test_what_an_engine_does_not_load_is_not_written(
    kind: str, to: str, target: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_heads(random_heads(replace(SMALL, kind=kind, hidden=32)), to, tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


def test_heads_are_no_eagle3_drafter_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r'architectures is \["MedusaModel"\], expected one of'):
        read_eagle3(folder_of(WEIGHTS, tmp_path / "heads"))
