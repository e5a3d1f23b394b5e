"""Folders of MTP modules, and what is wrong with one named in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError, ModelFileError
from paceline.models.drafter_kinds import kind_of
from paceline.models.mtp_folder import MODULE, MtpWeights, read_mtp
from paceline.models.safetensors_file import read_safetensors
from paceline.trained.mtp_export import compare, export_mtp
from tests.mtp import CONFIG, folder_of, random_drafter
from tests.unit.test_eagle3_folder import write

LAYER: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 28,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 20,
    "layer_types": ["full_attention"] * 28,
}
PUBLIC: dict[str, Any] = {
    "architectures": ["MTPDraftModel"],
    "speculators_model_type": "mtp",
    "num_nextn_predict_layers": 1,
    "transformer_layer_config": LAYER,
    "speculators_config": {
        "algorithm": "mtp",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
        "verifier": {"name_or_path": "org/target"},
    },
}


def tensors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {
        "hidden_layernorm": (8,),
        "token_layernorm": (8,),
        "final_layernorm": (8,),
        "input_proj": (8, 16),
        "input_layernorm": (8,),
        "post_attention_layernorm": (8,),
        "self_attn.q_norm": (4,),
        "self_attn.k_norm": (4,),
        "self_attn.q_proj": (8, 8),
        "self_attn.k_proj": (4, 8),
        "self_attn.v_proj": (4, 8),
        "self_attn.o_proj": (8, 8),
        "mlp.gate_proj": (12, 8),
        "mlp.up_proj": (12, 8),
        "mlp.down_proj": (8, 12),
    }
    return {
        f"mtp_layers.0.{name}.weight": rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


def test_a_folder_of_the_library_is_read(tmp_path: Path) -> None:
    """It says nothing of a vocabulary, and may hold what is the target's."""
    held = {**tensors(), "lm_head.weight": np.ones((20, 8), np.float32)}
    folder = write(tmp_path / "a", PUBLIC, held)
    weights = read_mtp(folder)
    config = weights.config
    assert kind_of(folder) == "mtp"
    assert (config.target_layers, config.draft_tokens, config.verifier) == (28, 5, "org/target")
    assert (config.head_dim, config.draft_vocab_size) == (4, 20)
    assert weights.token_ids.tolist() == list(range(20))
    assert weights.tensors.keys() == tensors().keys()


def changed(**changes: Any) -> dict[str, Any]:
    """A key of the decoder layers goes there."""
    layer = {key: changes.pop(key) for key in tuple(changes) if key in {*LAYER, "attention_bias"}}
    return {**PUBLIC, **changes, "transformer_layer_config": {**LAYER, **layer}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(speculators_model_type="eagle3"), 'speculators_model_type is "eagle3", expected "mtp"'),
        (changed(num_nextn_predict_layers=2), "num_nextn_predict_layers is 2, expected 1"),
        (changed(num_centroids=64), "num_centroids is 64, expected null"),
        (changed(model_type="qwen3_next"), 'model_type is "qwen3_next", expected "qwen3"'),
        (changed(layer_types=["linear_attention"] * 28), 'expected "full_attention" for each layer'),
        (changed(attention_bias=True), "attention_bias is true, expected false"),
        (changed(hidden_size=0), "hidden_size is 0, expected a whole number above 0"),
        (changed(draft_vocab_size=21), "draft_vocab_size is 21, expected at most the target's 20 tokens"),
        (changed(speculators_config=None), "speculators_config is null, expected an object"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_by_name(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message) as refused:
        read_mtp(write(tmp_path / "a", config, tensors()))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mtp_layers.0.input_proj.weight", None, "tensor mtp_layers.0.input_proj.weight is missing"),
        (
            "mtp_layers.0.input_proj.weight",
            np.ones((8, 8), np.float32),
            r"is float32 \[8, 8\], expected floats \[8, 16\]",
        ),
        ("mtp_layers.0.final_layernorm.weight", np.full(8, np.inf, np.float32), "not finite"),
        (
            "mtp_layers.1.input_proj.weight",
            np.ones((8, 16), np.float32),
            "has no tensor mtp_layers.1.input_proj",
        ),
        ("d2t", np.full(20, -1), "d2t does not lead to different tokens below 20"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    held = tensors()
    if value is None:
        del held[name]
    else:
        held[name] = value
    with pytest.raises(ModelFileError, match=message):
        read_mtp(write(tmp_path / "a", PUBLIC, held))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config.json cannot be read: No such file"):
        read_mtp(tmp_path / "nowhere")
    folder = write(tmp_path / "a", PUBLIC, tensors())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"is damaged: .*the file is cut off"):
        read_mtp(folder)
    path.unlink()
    with pytest.raises(ModelFileError, match=r"there is no model.safetensors"):
        read_mtp(folder)


def same(one: MtpWeights, other: MtpWeights) -> None:
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, other.tensors[name])


def test_our_folders_say_which_tokens_are_proposed(tmp_path: Path) -> None:
    weights = random_drafter()
    again = read_mtp(folder_of(weights, tmp_path / "a"))
    assert replace(again.config, verifier=CONFIG.verifier) == CONFIG
    assert again.token_ids.tolist() == weights.token_ids.tolist()
    same(weights, again)


def test_an_export_is_the_same_module_for_all_tokens(tmp_path: Path) -> None:
    weights = random_drafter()
    written = export_mtp(weights, "vllm", tmp_path / "out", "org/model")
    assert written.difference == 0
    again = read_mtp(written.folder)
    assert again.config == replace(CONFIG, draft_vocab_size=CONFIG.vocab_size, verifier="org/model")
    same(weights, again)
    assert read_safetensors(written.folder / "model.safetensors").keys() == CONFIG.shapes.keys()
    assert "draft_vocab_size" not in written.config
    assert written.config["transformer_layer_config"]["num_hidden_layers"] == 3
    assert '"method": "mtp"' in written.command
    with pytest.raises(ConfigError, match="SGLang looks for MTP modules in the target's own folder alone"):
        export_mtp(weights, "sglang", tmp_path / "s", "")
    nameless = replace(weights, config=replace(CONFIG, verifier=""))
    with pytest.raises(ConfigError, match="name it with --target"):
        export_mtp(nameless, "vllm", tmp_path / "s", "")
    assert not (tmp_path / "s").exists()


def test_another_module_would_be_noticed() -> None:
    """The twin: what compares exports sees one weight out of ten thousand, and every setting."""
    weights = random_drafter()
    for name in ("input_proj", "self_attn.k_norm", "final_layernorm"):
        other = {key: np.array(tensor) for key, tensor in weights.tensors.items()}
        other[f"{MODULE}{name}.weight"].flat[5] += 0.02
        assert compare(weights, replace(weights, tensors=other)) > 1e-5, name
    assert compare(weights, replace(weights, config=replace(CONFIG, rope_theta=500.0))) > 1e-5
