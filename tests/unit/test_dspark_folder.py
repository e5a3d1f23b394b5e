"""Folders of DSpark drafters in both forms, and what is wrong with one named in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError, ModelFileError
from paceline.models.dflash_folder import read_dflash
from paceline.models.drafter_kinds import kind_of
from paceline.models.dspark_folder import CONFIDENCE, MARKOV_IN, MARKOV_OUT, read_dspark
from paceline.models.safetensors_file import read_safetensors
from paceline.trained.dspark_export import compare, export_dspark
from tests.dspark import CONFIG, random_drafter
from tests.unit.test_dflash_folder import IDS, LAYERS, changed, headed, write
from tests.unit.test_dflash_folder import SPECULATORS as DFLASH

SPECULATORS: dict[str, Any] = {
    **DFLASH,
    "speculators_model_type": "dspark",
    "markov_rank": 3,
    "markov_head_type": "vanilla",
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
    "sample_from_anchor": True,
}
NATIVE: dict[str, Any] = {
    **LAYERS,
    "architectures": ["Qwen3DSparkModel"],
    "draft_vocab_size": 6,
    "block_size": 4,
    "target_layer_ids": [1, 14],
    "mask_token_id": 19,
    **{key: SPECULATORS[key] for key in SPECULATORS if "markov" in key or "confidence" in key},
}


def body() -> dict[str, Any]:
    """DFlash's tensors and those of both heads."""
    rng = np.random.default_rng(2)
    shapes = {MARKOV_IN: (20, 3), MARKOV_OUT: (6, 3), CONFIDENCE: (1, 11), "confidence_head.proj.bias": (1,)}
    return headed() | {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def test_both_forms_are_one_record(tmp_path: Path) -> None:
    ours = read_dspark(write(tmp_path / "a", SPECULATORS, body()))
    native = read_dspark(write(tmp_path / "b", NATIVE, body()))
    assert ours.config.layer_ids == native.config.layer_ids == (2, 15)
    assert ours.config == replace(native.config, verifier="org/target")
    assert (ours.config.rank, ours.config.block, ours.config.depths) == (3, 4, 4)
    assert ours.tensors.keys() == native.tensors.keys() > {MARKOV_IN, MARKOV_OUT, CONFIDENCE}
    assert ours.token_ids.tolist() == native.token_ids.tolist() == IDS
    assert kind_of(tmp_path / "a") == "dspark"
    assert kind_of(tmp_path / "b") == "dspark"
    assert kind_of(write(tmp_path / "c", DFLASH, headed())) == "dflash"
    with pytest.raises(ModelFileError, match='is "dspark", expected "dflash"'):
        read_dflash(tmp_path / "a")
    nested = {**changed(NATIVE, "architectures", ["DSparkDraftModel"])}
    assert read_dspark(write(tmp_path / "d", nested, body())).config == native.config


def test_the_forms_differ_in_what_they_leave_unsaid(tmp_path: Path) -> None:
    bare = changed(SPECULATORS, "sample_from_anchor", None)
    config = read_dspark(write(tmp_path / "a", bare, body())).config
    assert (config.from_anchor, config.depths) == (False, 3)
    assert read_dspark(write(tmp_path / "b", NATIVE, body())).config.from_anchor
    silent = {name: tensor for name, tensor in body().items() if "confidence" not in name}
    unsure = read_dspark(write(tmp_path / "c", changed(NATIVE, "enable_confidence_head", None), silent))
    assert not unsure.config.confidence
    states = {**body(), CONFIDENCE: np.ones((1, 8), np.float32)}
    config = read_dspark(
        write(tmp_path / "d", changed(NATIVE, "confidence_head_with_markov", None), states)
    ).config
    assert (config.confidence, config.confidence_tokens) == (True, False)


@pytest.mark.parametrize(
    ("base", "key", "value", "message"),
    [
        (SPECULATORS, "speculators_model_type", "dflash", 'is "dflash", expected "dspark"'),
        (SPECULATORS, "markov_rank", 0, "markov_rank is 0, expected a whole number above 0"),
        (SPECULATORS, "markov_rank", None, "markov_rank is nothing"),
        (SPECULATORS, "markov_head_type", "gated", 'markov_head_type is "gated", expected "vanilla"'),
        (SPECULATORS, "sample_from_anchor", "yes", 'sample_from_anchor is "yes", expected true or false'),
        (SPECULATORS, "enable_confidence_head", 1, "enable_confidence_head is 1, expected true or false"),
        (SPECULATORS, "mask_token_id", 20, "mask_token_id is 20, expected one of the target's 20 tokens"),
        (
            {**SPECULATORS, "sample_from_anchor": False},
            "block_size",
            1,
            "block_size is 1, expected at least 2",
        ),
        (NATIVE, "architectures", ["DFlashDraftModel"], r'expected \["Qwen3DSparkModel"\], or speculators'),
        (NATIVE, "target_layer_ids", None, "target_layer_ids is nothing, expected a list"),
    ],
)
def test_settings_that_are_wrong_or_not_supported_are_named(
    base: dict[str, Any], key: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_dspark(write(tmp_path / "a", changed(base, key, value), body()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != MARKOV_IN}, f"tensor {MARKOV_IN} is missing"),
        (lambda t: {k: v for k, v in t.items() if k != CONFIDENCE}, f"tensor {CONFIDENCE} is missing"),
        (lambda t: {**t, MARKOV_OUT: t[MARKOV_OUT][:5]}, r"float32 \[5, 3\], expected floats \[6, 3\]"),
        (lambda t: {**t, MARKOV_IN: np.full((20, 3), np.nan, np.float32)}, "values that are not finite"),
        (lambda t: {**t, "markov_head.gate.weight": t[MARKOV_IN]}, "has no tensor markov_head.gate.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_dspark(write(tmp_path / "a", SPECULATORS, change(body())))


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", SPECULATORS, body())
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-20])
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        read_dspark(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"there is no model\.safetensors"):
        read_dspark(folder)


@pytest.mark.parametrize("from_anchor", [True, False])
def test_an_export_reads_back_as_the_same_drafter(from_anchor: bool, tmp_path: Path) -> None:
    weights = random_drafter(replace(CONFIG, from_anchor=from_anchor))
    written = export_dspark(weights, "vllm", tmp_path / "a", "org/target")
    assert written.difference == 0
    assert written.config["aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert written.config["sample_from_anchor"] is from_anchor
    assert written.config["architectures"] == ["Qwen3DSparkModel"]
    assert '"method": "dspark"' in written.command
    assert f'"num_speculative_tokens": {4 if from_anchor else 3}' in written.command
    again = read_dspark(tmp_path / "a")
    assert again.config == replace(weights.config, verifier="org/target")
    np.testing.assert_array_equal(again.token_ids, weights.token_ids)
    assert read_safetensors(tmp_path / "a" / "model.safetensors")["t2d"].sum() == 75


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="written for vLLM alone, not for sglang"):
        export_dspark(random_drafter(), "sglang", tmp_path / "a", "org/target")
    with pytest.raises(ConfigError, match="reduced vocabulary and no head"):
        export_dspark(random_drafter(head=False), "vllm", tmp_path / "a", "org/target")
    silent = random_drafter(replace(CONFIG, verifier=""))
    with pytest.raises(ConfigError, match="name it with --target"):
        export_dspark(silent, "vllm", tmp_path / "a", "")
    assert not (tmp_path / "a").exists()


def test_other_weights_are_far_apart() -> None:
    """The twin of the comparison: each head counts."""
    weights, other = random_drafter(), random_drafter(seed=1)
    for name in (MARKOV_IN, MARKOV_OUT, CONFIDENCE, "fc.weight"):
        swapped = replace(weights, tensors={**weights.tensors, name: other.tensors[name]})
        assert compare(weights, swapped) > 0.01
    assert compare(weights, random_drafter(replace(CONFIG, block=5))) == np.inf
