"""Folders of P-EAGLE drafters: those of EAGLE-3 with a mask, and what is wrong with one named in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError, ModelFileError
from paceline.models.drafter_kinds import kind_of
from paceline.models.eagle3_folder import MASK_HIDDEN, read_eagle3
from paceline.models.safetensors_file import read_safetensors
from paceline.trained.eagle3_export import compare, export_eagle3
from paceline.trained.peagle_reference import draft
from tests.eagle3 import random_drafter as random_eagle3
from tests.peagle import CONFIG, random_drafter
from tests.unit.test_eagle3_folder import NATIVE, changed, tensors, write

MASKED: dict[str, Any] = {"speculators_model_type": "peagle", "mask_token_id": 19}


def masked(first: str = "layers.0") -> dict[str, Any]:
    return {**tensors(first), MASK_HIDDEN: np.arange(24, dtype=np.float32).reshape(1, 1, 24)}


def test_both_forms_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", changed(**MASKED), masked())
    weights = read_eagle3(folder, "peagle")
    assert kind_of(folder) == "peagle"
    assert (weights.config.kind, weights.config.mask_token, weights.config.draft_tokens) == ("peagle", 19, 5)
    flat = {**masked("midlayer"), MASK_HIDDEN: np.arange(24, dtype=np.float32)}
    native = write(tmp_path / "b", {**NATIVE, "ptd_token_id": 19}, flat)
    assert kind_of(native) == "peagle"
    again = read_eagle3(native, "peagle")
    assert again.config.mask_token == 19
    np.testing.assert_array_equal(again.tensors[MASK_HIDDEN], weights.tensors[MASK_HIDDEN])


def test_a_drafter_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "a", changed(**MASKED), masked())
    with pytest.raises(ModelFileError, match='speculators_model_type is "peagle", expected "eagle3"'):
        read_eagle3(one)
    native = write(tmp_path / "b", {**NATIVE, "pard_token": 1}, masked("midlayer"))
    with pytest.raises(ModelFileError, match="pard_token is 1, expected none: P-EAGLE has one"):
        read_eagle3(native)
    other = write(tmp_path / "c", changed(), tensors())
    assert kind_of(other) == "eagle3"
    with pytest.raises(ModelFileError, match='speculators_model_type is "eagle3", expected "peagle"'):
        read_eagle3(other, "peagle")
    plain = write(tmp_path / "d", NATIVE, tensors("midlayer"))
    assert kind_of(plain) == "eagle3"
    with pytest.raises(ModelFileError, match="mask_token_id is nothing, expected one of the target's 20"):
        read_eagle3(plain, "peagle")


@pytest.mark.parametrize(
    ("changes", "hidden", "message"),
    [
        ({"mask_token_id": 20}, 24, "mask_token_id is 20, expected one of the target's 20 tokens"),
        ({}, 0, "tensor mask_hidden is missing"),
        ({}, 16, r"mask_hidden is float32 \[1, 1, 16\], expected floats \[1, 1, 24\]"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    changes: dict[str, Any], hidden: int, message: str, tmp_path: Path
) -> None:
    held = tensors() | ({MASK_HIDDEN: np.ones(hidden, np.float32)} if hidden else {})
    with pytest.raises(ModelFileError, match=message):
        read_eagle3(write(tmp_path / "a", changed(**(MASKED | changes)), held), "peagle")


def test_an_export_reads_back_as_the_same_drafter(tmp_path: Path) -> None:
    weights = random_drafter()
    written = export_eagle3(weights, "vllm", tmp_path / "out", "org/model")
    assert written.difference == 0
    again = read_eagle3(written.folder, "peagle")
    assert replace(again.config, verifier=CONFIG.verifier) == CONFIG
    assert written.config["architectures"] == ["PEagleDraftModel"]
    assert written.config["mask_token_id"] == CONFIG.mask_token
    assert written.config["transformer_layer_config"]["num_hidden_layers"] == 2
    held = read_safetensors(written.folder / "model.safetensors")
    assert held[MASK_HIDDEN].shape == (1, 1, 3 * CONFIG.target_hidden)
    assert '"method": "eagle3"' in written.command
    assert '"num_speculative_tokens": 4, "parallel_drafting": true' in written.command
    with pytest.raises(ConfigError, match="SGLang loads no drafters of P-EAGLE"):
        export_eagle3(
            replace(weights, config=replace(CONFIG, layer_ids=(1, 2, 3))), "sglang", tmp_path / "s", "t"
        )


def test_another_drafter_would_be_noticed() -> None:
    """The twin: what compares exports sees the mask, and the layers behind the first."""
    weights = random_drafter()
    for name in (MASK_HIDDEN, "layers.1.mlp.up_proj.weight"):
        other = {key: np.array(tensor) for key, tensor in weights.tensors.items()}
        other[name].flat[5] += 0.02
        assert compare(weights, replace(weights, tensors=other)) > 1e-5, name
    changed = replace(CONFIG, mask_token=3)
    assert compare(weights, replace(weights, config=changed)) > 1e-5


def test_the_first_drafted_token_is_as_eagle3_has_it() -> None:
    """The mask slots are behind it, and every slot sees those before it alone."""
    from paceline.trained.eagle3_reference import follow

    weights, rng = random_drafter(), np.random.default_rng(3)
    embedding = rng.standard_normal((CONFIG.vocab_size, CONFIG.hidden), np.float32)
    features = rng.standard_normal((4, CONFIG.hidden), np.float32)
    drafted = draft(weights, embedding, [3, 1, 4, 1, 5], features)
    assert drafted.shape == (4, CONFIG.draft_vocab_size)
    first = follow(weights, embedding, [3, 1, 4, 1, 5], features, [])
    np.testing.assert_allclose(drafted[0], first, rtol=1e-4, atol=1e-5)
    assert random_eagle3().config.kind == "eagle3"
