"""Folders of DFlash drafters in both forms, and what is wrong with one named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError, ModelFileError
from paceline.models.dflash_folder import HEAD, DFlashWeights, read_dflash
from paceline.models.drafter_kinds import kind_of
from paceline.models.safetensors_file import read_safetensors, write_safetensors
from paceline.trained.dflash_export import compare, export_dflash
from tests.dflash import CONFIG, random_drafter

LAYERS: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "vocab_size": 20,
    "rope_theta": 5000.0,
}
SPECULATORS: dict[str, Any] = {
    "architectures": ["DFlashSpeculator"],
    "speculators_model_type": "dflash",
    "draft_vocab_size": 6,
    "aux_hidden_state_layer_ids": [2, 15],
    "block_size": 4,
    "mask_token_id": 19,
    "transformer_layer_config": LAYERS,
    "speculators_config": {"algorithm": "dflash", "verifier": {"name_or_path": "org/target"}},
}
NATIVE: dict[str, Any] = {
    **LAYERS,
    "architectures": ["DFlashDraftModel"],
    "block_size": 4,
    "num_target_layers": 30,
    "dflash_config": {"mask_token_id": 19, "target_layer_ids": [1, 14]},
}
IDS = [1, 4, 5, 9, 17, 19]


def body() -> dict[str, Any]:
    """What drafters of both forms have, as LAYERS describes it."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"fc": (8, 16), "hidden_norm": (8,), "norm": (8,)}
    for at in ("layers.0.", "layers.1."):
        shapes |= {at + name: (8,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {at + f"self_attn.{name}_norm": (4,) for name in "qk"}
        shapes |= {
            at + f"self_attn.{name}_proj": (rows, 8) for name, rows in zip("qkvo", (8, 4, 4, 8), strict=True)
        }
        shapes |= {at + f"mlp.{name}_proj": (12, 8) for name in ("gate", "up")}
        shapes |= {at + "mlp.down_proj": (8, 12)}
    return {name + ".weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def headed() -> dict[str, Any]:
    """The body, a head and its tokens."""
    head = np.random.default_rng(1).standard_normal((6, 8), np.float32)
    return {**body(), HEAD: head, "d2t": np.array(IDS) - np.arange(6), "t2d": np.isin(np.arange(20), IDS)}


def write(folder: Path, config: dict[str, Any], held: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", held)
    return folder


def test_both_forms_are_one_record_but_for_the_head(tmp_path: Path) -> None:
    ours = read_dflash(write(tmp_path / "a", SPECULATORS, headed()))
    native = read_dflash(write(tmp_path / "b", NATIVE, body()))
    assert ours.config.layer_ids == native.config.layer_ids == (2, 15)
    assert replace(ours.config, draft_vocab_size=20) == replace(native.config, verifier="org/target")
    assert ours.tensors.keys() == native.tensors.keys() | {HEAD} == ours.config.shapes.keys() | {HEAD}
    for name, tensor in native.tensors.items():
        np.testing.assert_array_equal(tensor, ours.tensors[name])
    assert (ours.token_ids.tolist(), native.token_ids.tolist()) == (IDS, list(range(20)))
    config = ours.config
    assert (config.hidden, config.layers, config.ffn, config.head_dim) == (8, 2, 12, 4)
    assert (config.heads, config.kv_heads, config.rope_theta) == (2, 1, 5000.0)
    assert (config.block, config.depths, config.mask_token) == (4, 3, 19)
    assert kind_of(tmp_path / "a") == "dflash"
    assert kind_of(tmp_path / "b") == "dflash"
    eagle = write(tmp_path / "c", {**SPECULATORS, "speculators_model_type": "eagle3"}, {})
    assert kind_of(eagle) == "eagle3"


def test_newer_native_folders_have_the_size_of_a_block_inside(tmp_path: Path) -> None:
    bare = {key: value for key, value in NATIVE.items() if key != "block_size"}
    inside = {**bare, "dflash_config": {**NATIVE["dflash_config"], "block_size": 7}}
    assert read_dflash(write(tmp_path / "a", inside, body())).config.block == 7


def changed(base: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A config with another value at a dotted key; None takes it away."""
    outer, _, inner = key.partition(".")
    if inner:
        return {**base, outer: changed(base[outer], inner, value)}
    return {name: held for name, held in {**base, key: value}.items() if held is not None}


@pytest.mark.parametrize(
    ("base", "key", "value", "message"),
    [
        (
            SPECULATORS,
            "speculators_model_type",
            "eagle3",
            'speculators_model_type is "eagle3", expected "dflash"',
        ),
        (SPECULATORS, "sample_from_anchor", True, "sample_from_anchor is true, expected false"),
        (
            SPECULATORS,
            "aux_hidden_state_layer_ids",
            None,
            "aux_hidden_state_layer_ids is nothing, expected a list",
        ),
        (SPECULATORS, "mask_token_id", 20, "mask_token_id is 20, expected one of the target's 20 tokens"),
        (SPECULATORS, "mask_token_id", None, "mask_token_id is nothing"),
        (SPECULATORS, "block_size", 1, "block_size is 1, expected at least 2"),
        (
            SPECULATORS,
            "draft_vocab_size",
            21,
            "draft_vocab_size is 21, expected at most the target's 20 tokens",
        ),
        (SPECULATORS, "target_hidden_size", 16, "target_hidden_size is 16, expected the drafter's own 8"),
        (
            SPECULATORS,
            "transformer_layer_config.model_type",
            "llama",
            'model_type is "llama", expected "qwen3"',
        ),
        (
            SPECULATORS,
            "transformer_layer_config.num_key_value_heads",
            3,
            "num_key_value_heads is 3, expected a div",
        ),
        (
            SPECULATORS,
            "transformer_layer_config.layer_types",
            ["full_attention", "sliding_attention"],
            'layer_types is .* expected "full_attention" for each layer',
        ),
        (
            NATIVE,
            "architectures",
            ["Qwen3ForCausalLM"],
            r'expected \["DFlashDraftModel"\], or speculators_model_type',
        ),
        (NATIVE, "dflash_config", None, "dflash_config is nothing, expected an object"),
        (NATIVE, "dflash_config.causal", True, "dflash_config.causal is true, expected false"),
        (NATIVE, "dflash_config.use_swa", True, "dflash_config.use_swa is true, expected false"),
        (NATIVE, "dflash_config.target_layer_ids", "1", 'target_layer_ids is "1", expected a list of whole'),
    ],
)
def test_settings_that_are_wrong_or_not_supported_are_named(
    base: dict[str, Any], key: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_dflash(write(tmp_path / "a", changed(base, key, value), headed()))


Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "fc.weight"}, "tensor fc.weight is missing"),
        (
            lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up" not in k},
            "layers.1.mlp.up_proj.weight is mis",
        ),
        (
            lambda t: {**t, "norm.weight": np.ones(9, np.float32)},
            r"norm.weight is float32 \[9\], expected floats",
        ),
        (
            lambda t: {**t, "norm.weight": np.full(8, np.nan, np.float32)},
            "norm.weight holds values that are not fin",
        ),
        (
            lambda t: {**t, "layers.2.mlp.up_proj.weight": t["norm.weight"]},
            "has no tensor layers.2",
        ),
        (lambda t: {k: v for k, v in t.items() if k != "d2t"}, "tensor d2t is missing"),
        (lambda t: {**t, "d2t": t["d2t"] + 15}, "does not lead to different tokens below 20"),
        (lambda t: {**t, "t2d": ~t["t2d"]}, "d2t and t2d name different tokens"),
        (lambda t: {**t, HEAD: t[HEAD][:5]}, r"lm_head.weight is float32 \[5, 8\], expected floats \[6, 8\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_dflash(write(tmp_path / "a", SPECULATORS, change(headed())))


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", SPECULATORS, headed())
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-20])
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        read_dflash(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"there is no model\.safetensors"):
        read_dflash(folder)
    write(folder, SPECULATORS, headed())
    (folder / "mask_embedding.pt").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"there is a mask_embedding\.pt"):
        read_dflash(folder)
    (folder / "config.json").write_text("[")
    with pytest.raises(ModelFileError, match=r"config\.json is damaged"):
        read_dflash(folder)


def test_an_export_reads_back_as_the_same_drafter(tmp_path: Path) -> None:
    weights = random_drafter()
    written = export_dflash(weights, "vllm", tmp_path / "a", "org/target")
    assert written.difference == 0
    assert written.config["aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert '"method": "dflash"' in written.command
    assert '"num_speculative_tokens": 4' in written.command
    again = read_dflash(tmp_path / "a")
    assert again.config == replace(weights.config, verifier="org/target")
    np.testing.assert_array_equal(again.token_ids, weights.token_ids)
    held = read_safetensors(tmp_path / "a" / "model.safetensors")
    assert held["t2d"].sum() == 75
    assert export_dflash(weights, "vllm", tmp_path / "b", "").config["speculators_config"]["verifier"] == {
        "name_or_path": "tiny random",
        "architectures": [],
    }


def whole_vocabulary() -> DFlashWeights:
    """A drafter that takes the target's head for all tokens."""
    weights = random_drafter(replace(CONFIG, draft_vocab_size=CONFIG.vocab_size), head=False)
    return replace(weights, token_ids=np.arange(CONFIG.vocab_size))


def test_without_a_head_of_its_own_it_goes_into_the_native_form(tmp_path: Path) -> None:
    weights = whole_vocabulary()
    written = export_dflash(weights, "sglang", tmp_path / "a", "org/target")
    assert written.difference == 0
    assert written.config["dflash_config"] == {"mask_token_id": 202, "target_layer_ids": [0, 1, 2]}
    assert "--speculative-algorithm DFLASH" in written.command
    assert "--speculative-num-draft-tokens 5" in written.command
    assert replace(read_dflash(tmp_path / "a").config, verifier="tiny random") == weights.config
    assert export_dflash(read_dflash(tmp_path / "a"), "vllm", tmp_path / "b", "org/target").difference == 0
    with pytest.raises(ConfigError, match=r"has a head of its own.* --arch dflash:head=target"):
        export_dflash(random_drafter(), "sglang", tmp_path / "c", "org/target")
    embedded = replace(weights, config=replace(weights.config, layer_ids=(0, 2, 3)))
    with pytest.raises(ConfigError, match="SGLang does not hand to drafters"):
        export_dflash(embedded, "sglang", tmp_path / "c", "org/target")
    with pytest.raises(ConfigError, match="reduced vocabulary and no head"):
        export_dflash(random_drafter(head=False), "vllm", tmp_path / "c", "org/target")
    silent = replace(weights, config=replace(weights.config, verifier=""))
    with pytest.raises(ConfigError, match="name it with --target"):
        export_dflash(silent, "vllm", tmp_path / "c", "")
    assert not (tmp_path / "c").exists()


def test_other_weights_are_far_apart() -> None:
    """The twin of the comparison."""
    assert compare(random_drafter(), random_drafter(seed=1)) > 0.1
    assert compare(random_drafter(), random_drafter(replace(CONFIG, block=4))) == np.inf
