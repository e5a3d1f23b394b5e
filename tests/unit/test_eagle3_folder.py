"""Folders of EAGLE-3 drafters in both forms, and what is wrong with one named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError, ModelFileError
from paceline.models.eagle3_folder import Eagle3Weights, read_eagle3
from paceline.models.safetensors_file import read_safetensors, write_safetensors
from paceline.trained.eagle3_export import compare, export_eagle3
from paceline.trained.eagle3_reference import follow, fuse
from tests.eagle3 import CONFIG, random_drafter

LAYER: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "vocab_size": 20,
    "rope_theta": 5000.0,
}
SPECULATORS: dict[str, Any] = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "draft_vocab_size": 6,
    "norm_before_residual": False,
    "eagle_aux_hidden_state_layer_ids": [2, 15, 27],
    "transformer_layer_config": LAYER,
    "speculators_config": {
        "algorithm": "eagle3",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
        "verifier": {"name_or_path": "org/target"},
    },
}
NATIVE: dict[str, Any] = {
    **LAYER,
    "architectures": ["LlamaForCausalLMEagle3"],
    "draft_vocab_size": 6,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 14, 26]},
}
IDS = [1, 4, 5, 9, 17, 19]


def tensors(first: str = "layers.0") -> dict[str, Any]:
    """Of a drafter as LAYER describes it, under the names of either form."""
    rng = np.random.default_rng(0)
    shapes = {
        f"{first}.input_layernorm": (8,),
        f"{first}.hidden_norm": (8,),
        f"{first}.post_attention_layernorm": (8,),
        f"{first}.self_attn.q_proj": (8, 16),
        f"{first}.self_attn.k_proj": (4, 16),
        f"{first}.self_attn.v_proj": (4, 16),
        f"{first}.self_attn.o_proj": (8, 8),
        f"{first}.mlp.gate_proj": (12, 8),
        f"{first}.mlp.up_proj": (12, 8),
        f"{first}.mlp.down_proj": (8, 12),
        "fc": (8, 24),
        "norm": (8,),
        "lm_head": (6, 8),
    }
    made: dict[str, Any] = {
        name + ".weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    return {**made, "d2t": np.array(IDS) - np.arange(6), "t2d": np.isin(np.arange(20), IDS)}


def write(folder: Path, config: dict[str, Any], held: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", held)
    return folder


def test_both_forms_are_one_record(tmp_path: Path) -> None:
    ours = read_eagle3(write(tmp_path / "a", SPECULATORS, tensors()))
    native = read_eagle3(write(tmp_path / "b", NATIVE, tensors("midlayer")))
    assert ours.config.layer_ids == native.config.layer_ids == (2, 15, 27)
    assert ours.config == replace(native.config, verifier="org/target", draft_tokens=5)
    assert ours.config.shapes.keys() == ours.tensors.keys() == native.tensors.keys()
    for name, tensor in ours.tensors.items():
        np.testing.assert_array_equal(tensor, native.tensors[name])
    assert ours.token_ids.tolist() == native.token_ids.tolist() == IDS
    config = ours.config
    assert (config.hidden, config.ffn, config.heads, config.kv_heads, config.head_dim) == (8, 12, 2, 1, 4)
    assert (config.vocab_size, config.draft_vocab_size, config.target_hidden) == (20, 6, 8)
    assert (config.rope_theta, config.norm_eps) == (5000.0, 1e-5)


def test_what_is_not_said_is_guessed_as_each_engine_does(tmp_path: Path) -> None:
    bare = {key: value for key, value in SPECULATORS.items() if key != "norm_before_residual"}
    spoken = read_eagle3(write(tmp_path / "a", bare, tensors())).config
    native = {key: value for key, value in NATIVE.items() if key != "eagle_config"}
    silent = read_eagle3(write(tmp_path / "b", native, tensors("midlayer"))).config
    assert spoken.norm_before_residual
    assert not silent.norm_before_residual
    assert not spoken.norm_output
    assert not silent.norm_output
    assert silent.layer_ids is None
    assert silent.layers_of(30) == (2, 15, 27)
    for key, ids in (("target_layer_ids", [1, 14, 26]), ("eagle_aux_hidden_state_layer_ids", [2, 15, 27])):
        said = read_eagle3(write(tmp_path / "c", {**native, key: ids}, tensors("midlayer"))).config
        assert said.layer_ids == (2, 15, 27)


def test_rotary_settings_of_both_kinds_of_transformers_are_read(tmp_path: Path) -> None:
    def config(**changes: Any) -> Any:
        layer = {**{key: value for key, value in LAYER.items() if key != "rope_theta"}, **changes}
        return read_eagle3(
            write(tmp_path / "a", {**SPECULATORS, "transformer_layer_config": layer}, tensors())
        ).config

    plain = config(rope_theta=100.0).frequencies
    np.testing.assert_allclose(plain, [1, 0.1])
    np.testing.assert_allclose(
        config(rope_parameters={"rope_type": "default", "rope_theta": 100.0}).frequencies, plain
    )
    slow = config(rope_theta=100.0, rope_scaling={"type": "linear", "factor": 4}).frequencies
    np.testing.assert_allclose(slow, plain / 4)
    llama = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 100}
    found = config(
        rope_theta=1e4, head_dim=4, rope_scaling={"rope_type": "llama3", "factor": 8, **llama}
    ).frequencies
    np.testing.assert_allclose(found, [1, 0.01 / 8])  # many turns within 100 positions; less than one
    with pytest.raises(ModelFileError, match=r'rope_scaling.rope_type is "yarn", expected "default"'):
        config(rope_scaling={"rope_type": "yarn", "factor": 4})


def changed(**changes: Any) -> dict[str, Any]:
    """A config of the speculators form; a key of its decoder layer goes there."""
    layer = {key: changes.pop(key) for key in tuple(changes) if key in {*LAYER, "attention_bias", "head_dim"}}
    return {**SPECULATORS, **changes, "transformer_layer_config": {**LAYER, **layer}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(speculators_model_type="dflash"), 'speculators_model_type is "dflash", expected "eagle3"'),
        (
            {**NATIVE, "architectures": ["LlamaForCausalLM"]},
            "architectures is .*, expected one of LlamaForCausalLMEagle3",
        ),
        ({**SPECULATORS, "transformer_layer_config": 3}, "transformer_layer_config is 3, expected an object"),
        (changed(model_type="qwen3"), 'transformer_layer_config.model_type is "qwen3", expected "llama"'),
        (changed(num_hidden_layers=0), "num_hidden_layers is 0, expected a whole number above 0"),
        (changed(mask_token_id=3), "mask_token_id is 3, expected none: P-EAGLE has one"),
        (changed(attention_bias=True), "attention_bias is true, expected false"),
        (changed(hidden_size="8"), 'hidden_size is "8", expected a whole number above 0'),
        (changed(hidden_size=True), "hidden_size is true, expected a whole number above 0"),
        (changed(vocab_size=None), "vocab_size is null, expected a whole number above 0"),
        (
            changed(num_attention_heads=3, num_key_value_heads=2),
            "num_key_value_heads is 2, expected a divisor of 3",
        ),
        (changed(draft_vocab_size=21), "draft_vocab_size is 21, expected at most the target's 20 tokens"),
        (changed(norm_output="yes"), 'norm_output is "yes", expected true or false'),
        (changed(eagle_aux_hidden_state_layer_ids=[]), "layer_ids is .*, expected a list of whole numbers"),
        (changed(rms_norm_eps=-1), "rms_norm_eps is -1, expected a number above 0"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_by_name(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message) as refused:
        read_eagle3(write(tmp_path / "a", config, tensors()))
    assert "\n" not in str(refused.value)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc.weight"), "tensor fc.weight is missing"),
        (without("layers.0.mlp.up_proj.weight"), "tensor layers.0.mlp.up_proj.weight is missing"),
        (without("d2t"), "tensor d2t is missing"),
        (
            put("fc.weight", np.ones((8, 16), np.float32)),
            r"fc.weight is float32 \[8, 16\], expected floats \[8, 24\]",
        ),
        (put("norm.weight", np.arange(8)), r"norm.weight is int64 \[8\], expected floats \[8\]"),
        (put("norm.weight", np.full(8, np.nan, np.float32)), "norm.weight holds values that are not finite"),
        (put("d2t", np.array([19] * 6)), "d2t does not lead to different tokens below 20"),
        (put("d2t", -np.arange(6)), "d2t does not lead to different tokens below 20"),
        (put("d2t", np.ones(6, np.float32)), r"d2t is float32 \[6\], expected whole numbers \[6\]"),
        (put("t2d", np.ones(20, np.bool_)), "d2t and t2d name different tokens"),
        (
            put("layers.1.mlp.up_proj.weight", np.ones(3, np.float32)),
            "has no tensor layers.1.mlp.up_proj.weight",
        ),
        (
            put("embed_tokens.weight", np.ones((19, 8), np.float32)),
            r"embed_tokens.weight is .*expected floats \[20, 8\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    held = tensors()
    change(held)
    with pytest.raises(ModelFileError, match=message):
        read_eagle3(write(tmp_path / "a", SPECULATORS, held))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config.json cannot be read: No such file"):
        read_eagle3(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config.json is damaged"):
        read_eagle3(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SPECULATORS))
    with pytest.raises(ModelFileError, match=r"there is no model.safetensors"):
        read_eagle3(tmp_path)
    path = write(tmp_path, SPECULATORS, tensors()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"is damaged: .*the file is cut off"):
        read_eagle3(tmp_path)


FULL = replace(CONFIG, norm_before_residual=True, norm_before_fc=True, fc_norm=True, norm_output=True)


@pytest.mark.parametrize("to", ["vllm", "sglang"])
@pytest.mark.parametrize("config", [CONFIG, FULL], ids=["plain", "every norm"])
def test_an_export_reads_back_as_the_same_drafter(to: str, config: Any, tmp_path: Path) -> None:
    config = replace(config, layer_ids=(1, 2, 3))
    weights = random_drafter(config, embeddings=config is not CONFIG)
    written = export_eagle3(weights, to, tmp_path / "out", "")
    assert written.difference == 0
    again = read_eagle3(written.folder)
    assert replace(again.config, verifier=config.verifier) == config
    assert again.token_ids.tolist() == weights.token_ids.tolist()
    held = read_safetensors(written.folder / "model.safetensors")
    assert held["t2d"].sum() == len(held["d2t"]) == config.draft_vocab_size
    for flag in ("norm_output", "norm_before_residual", "norm_before_fc", "fc_norm"):
        assert written.config[flag] == getattr(config, flag)
    if to == "vllm":
        assert written.config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
        assert written.config["transformer_layer_config"]["vocab_size"] == config.vocab_size
        assert "vllm serve 'tiny random' --speculative-config" in written.command
    else:
        assert written.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]
        assert "midlayer.hidden_norm.weight" in held
        assert f"--speculative-draft-model-path {written.folder}" in written.command


def test_another_drafter_would_be_noticed() -> None:
    """The twin: what compares exports sees one weight out of ten thousand, and every setting."""
    weights = random_drafter()
    for name in ("fc.weight", "layers.0.self_attn.v_proj.weight", "layers.0.hidden_norm.weight"):
        other = {key: np.array(tensor) for key, tensor in weights.tensors.items()}
        other[name].flat[5] += 0.02
        assert compare(weights, replace(weights, tensors=other)) > 1e-5, name
    for changes in ({"norm_output": True}, {"norm_before_residual": True}, {"rope_theta": 500.0}):
        changes_config = replace(CONFIG, **changes)  # type: ignore[arg-type]
        assert compare(weights, replace(weights, config=changes_config)) > 1e-5, changes


@pytest.mark.parametrize(
    ("changes", "to", "message"),
    [
        ({"verifier": ""}, "vllm", "name it with --target"),
        ({"layer_ids": None}, "vllm", "the number of the target's layers with --layers"),
        ({}, "sglang", "reads the target's embeddings, which SGLang does not"),
    ],
)
def test_an_export_that_would_have_to_guess_is_refused(
    changes: dict[str, Any], to: str, message: str, tmp_path: Path
) -> None:
    weights = random_drafter()
    with pytest.raises(ConfigError, match=message):
        export_eagle3(replace(weights, config=replace(CONFIG, **changes)), to, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_layers_that_are_not_said_become_the_usual_ones(tmp_path: Path) -> None:
    weights = random_drafter(replace(CONFIG, layer_ids=None))
    assert export_eagle3(weights, "vllm", tmp_path, "t", layers=30).config[
        "eagle_aux_hidden_state_layer_ids"
    ] == [
        2,
        15,
        27,
    ]
    assert read_eagle3(tmp_path).config.layer_ids == (2, 15, 27)


def test_a_path_is_followed_with_the_drafters_own_output() -> None:
    """The reference on one more token with its own feature equals what `follow` says of a path of one."""
    weights: Eagle3Weights = random_drafter()
    rng = np.random.default_rng(1)
    embedding = rng.standard_normal((CONFIG.vocab_size, CONFIG.hidden), np.float32)
    features = fuse(weights, [rng.standard_normal((4, CONFIG.target_hidden), np.float32)] * 3)
    text = [3, 1, 4, 1, 5]
    once = follow(weights, embedding, text, features, [])
    twice = follow(weights, embedding, text, features, [9])
    other = follow(weights, embedding, text, features, [8])
    assert once.shape == (CONFIG.draft_vocab_size,)
    assert not np.allclose(twice, once)
    assert not np.allclose(twice, other)
