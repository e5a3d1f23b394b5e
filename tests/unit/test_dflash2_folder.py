"""Folders of DFlash 2 drafters, and what is wrong with one named in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError, ModelFileError
from paceline.models.dflash2_folder import ABOVE, described, read_dflash2
from paceline.models.dflash_folder import HEAD
from paceline.models.drafter_kinds import kind_of
from paceline.models.safetensors_file import read_safetensors
from paceline.trained.dflash2_export import compare, export_dflash2
from tests.dflash2 import CONFIG, folder_of, random_drafter
from tests.unit.test_dflash_folder import changed, write

HELD = {**described(CONFIG), "num_target_layers": 30}


@pytest.mark.parametrize("to", ["vllm", "sglang"])
def test_an_export_reads_back_as_the_same_drafter(to: str, tmp_path: Path) -> None:
    """Layer ids count the layers, which is one less than the hidden states."""
    weights = random_drafter()
    written = export_dflash2(weights, to, tmp_path / "a", "org/target")
    assert written.difference == 0
    own = written.config["dflash_config"]
    assert (CONFIG.layer_ids, own["target_layer_ids"]) == ((1, 2, 3), [0, 1, 2])
    assert (own["selector_rank"], own["selector_top_k"]) == (8, 6)
    assert (own["conv_kernel_size"], own["conv_group_size"], own["block_size"]) == (2, 16, 5)
    assert ('"method": "dflash"' if to == "vllm" else "--speculative-algorithm DFLASH") in written.command
    again = read_dflash2(tmp_path / "a")
    assert again.config == replace(CONFIG, verifier="")
    assert kind_of(tmp_path / "a") == "dflash2"
    held = read_safetensors(tmp_path / "a" / "model.safetensors")
    assert held.keys() == CONFIG.shapes.keys()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    weights = random_drafter()
    with pytest.raises(ConfigError, match="name it with --target"):
        export_dflash2(weights, "vllm", tmp_path / "a", "")
    embedded = replace(weights, config=replace(CONFIG, layer_ids=(0, 2, 3)))
    with pytest.raises(ConfigError, match="reads the target's embeddings"):
        export_dflash2(embedded, "sglang", tmp_path / "a", "org/target")
    headed = replace(weights, tensors={**weights.tensors, HEAD: np.zeros((203, 96), np.float32)})
    with pytest.raises(ConfigError, match="has a head of its own"):
        export_dflash2(headed, "sglang", tmp_path / "a", "org/target")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architectures", ["DFlashDraftModel"], r'expected \["DFlash2DraftModel"\]'),
        ("draft_vocab_size", 75, "draft_vocab_size is 75, expected all of the target's 203 tokens"),
        ("dflash_config.selector_rank", None, "selector_rank is nothing, expected a whole number above 0"),
        ("dflash_config.selector_top_k", 204, "selector_top_k is 204, expected at most the target's 203 tok"),
        ("dflash_config.conv_group_size", 36, "conv_group_size is 36, expected a divisor of 96"),
        ("dflash_config.conv_kernel_size", 6, "conv_kernel_size is 6, expected at most the 5 slots"),
        ("dflash_config.output_multiplier", 2.0, "output_multiplier is 2.0, expected 1"),
        ("final_logit_softcapping", 30.0, "final_logit_softcapping is 30.0, expected null"),
        ("layer_types", ["sliding_attention"] * 2, 'expected "full_attention" for each layer'),
    ],
)
def test_settings_that_are_wrong_or_not_supported_are_named(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    held = random_drafter().tensors
    with pytest.raises(ModelFileError, match=message):
        read_dflash2(write(tmp_path / "a", changed(HELD, key, value), dict(held)))


def test_tensors_and_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    held = dict(random_drafter().tensors)
    bare = {name: tensor for name, tensor in held.items() if "attention_conv" not in name}
    for tensors, message in (
        (bare, "tensor layers.0.attention_conv.base_kernel is missing"),
        ({**held, ABOVE: held[ABOVE][:, :7]}, r"predecessor_codebook is float32 \[203, 7\], expected floats"),
        ({**held, "candidate_selector.bias": held["norm.weight"]}, "has no tensor candidate_selector.bias"),
    ):
        with pytest.raises(ModelFileError, match=message):
            read_dflash2(write(tmp_path / "a", HELD, tensors))
    folder = folder_of(random_drafter(), tmp_path / "b")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-20])
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        read_dflash2(folder)
    (folder / "config.json").write_text(json.dumps([]))
    with pytest.raises(ModelFileError, match=r"config\.json is damaged"):
        read_dflash2(folder)


def test_other_weights_are_far_apart() -> None:
    """The twin of the comparison."""
    every = replace(CONFIG, candidates=CONFIG.vocab_size)
    assert compare(random_drafter(every), random_drafter(every, seed=1)) > 0.1
    assert compare(random_drafter(), random_drafter(replace(CONFIG, candidates=5))) == np.inf
