"""Folders of DFlash drafters: config.json and model.safetensors, in the two forms that other engines read.

The form of the speculators library, which vLLM loads, and the native one of the authors, which SGLang and
vLLM load. The native one has neither embeddings nor a head: both are the target's. In the other one a drafter
of a reduced vocabulary brings its head, and says with d2t which tokens the head's rows are.

Layer ids are the trap: `aux_hidden_state_layer_ids` counts as transformers' `hidden_states` do, where 0 are
the embeddings; in the native form's `target_layer_ids`, i is what layer i yields, which is one more there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ModelFileError
from paceline.models.drafter_folder import (
    CONFIG,
    TENSORS,
    DecoderConfig,
    Floats,
    Settings,
    decoder_of,
    expect,
    held_layers,
    proposal,
    read_json,
    taken,
    token_ids_of,
)
from paceline.models.safetensors_file import read_safetensors

NATIVE_ARCHITECTURE = "DFlashDraftModel"
HEAD = "lm_head.weight"
MASK_FILE = "mask_embedding.pt"
"""Where some folders have an embedding of the mask token, which is not read here."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "model_type": ("qwen3",),
    "is_causal": (None, False),
    "use_sliding_window": (False,),
}
"""Settings of decoder layers that are implemented with these values only, beside
`paceline.models.drafter_folder.NEUTRAL`."""

_NATIVE_NEUTRAL: dict[str, tuple[object, ...]] = {
    "causal": (False, None),
    "use_swa": (False, None),
    "input_embedding_scale": (1, None),
    "output_multiplier": (1, None),
    "final_logit_softcapping": (None, 0),
}
"""The same of native folders, where they may stand inside or outside."""

_UNUSED = {"embed_tokens.weight", "verifier_lm_head.weight", "verifier_norm.weight"}
"""Tensors of the target that some folders hold, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DFlashConfig(DecoderConfig):
    """What the forward pass of a DFlash drafter must know beside its weights.

    hidden                width of its layers, of the target's embeddings and of its hidden states
    layers                decoder layers
    layer_ids             the target's hidden states that it reads, counted as transformers does: 0 are the
                          embeddings, k is what k layers made of them
    block                 slots of a block: the token that is known, and the drafted ones
    mask_token            the token whose embedding stands in the place of each drafted one
    """

    layers: int
    layer_ids: tuple[int, ...]
    block: int
    mask_token: int

    @property
    def depths(self) -> int:
        """Drafted tokens along one path."""
        return self.block - 1

    def layers_of(self, layers: int) -> tuple[int, ...]:
        """The hidden states that it reads of a target with so many layers. Raises IncompatibleDrafter."""
        return held_layers(self.layer_ids, layers)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that every such drafter has, and their shapes."""
        hidden, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (self.ffn, hidden),
            "mlp.up_proj": (self.ffn, hidden),
            "mlp.down_proj": (hidden, self.ffn),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "fc.weight": (hidden, len(self.layer_ids) * hidden),
            "hidden_norm.weight": (hidden,),
            "norm.weight": (hidden,),
        }
        for number in range(self.layers):
            shapes |= {f"layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        return shapes


@dataclass(frozen=True, slots=True)
class DFlashWeights:
    """A DFlash drafter as its folder describes it.

    tensors    float32, by the names of `DFlashConfig.shapes`; HEAD [draft_vocab_size, hidden] too where it
               has a head of its own; otherwise its head are the target's rows of `token_ids`
    token_ids  int64 [draft_vocab_size]: the target's id of each token it can propose
    """

    config: DFlashConfig
    tensors: Mapping[str, Floats]
    token_ids: NDArray[np.int64]


def is_dflash(held: Mapping[str, Any]) -> bool:
    """Whether a config.json says that it is such a drafter's."""
    kind = held.get("speculators_model_type")
    return kind == "dflash" or (kind is None and held.get("architectures") == [NATIVE_ARCHITECTURE])


def read_dflash(folder: Path) -> DFlashWeights:
    """The drafter in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    return read_weights(folder, _speculators(held) if "speculators_model_type" in held else _native(held))


def read_weights(folder: Path, config: DFlashConfig) -> DFlashWeights:
    """The drafter of that shape in a folder. Raises ModelFileError."""
    path = folder / TENSORS
    for file, there in ((TENSORS, True), (MASK_FILE, False)):
        if (folder / file).is_file() is not there:
            raise ModelFileError(f"{folder}: there is {'no' if there else 'a'} {file}")
    found = {name.removeprefix("model."): tensor for name, tensor in read_safetensors(path).items()}
    shapes = config.shapes
    if HEAD in found:
        shapes[HEAD] = (config.draft_vocab_size, config.hidden)
    token_ids = token_ids_of(
        path, config.vocab_size, config.draft_vocab_size, found.pop("d2t", None), found.pop("t2d", None)
    )
    tensors = taken(path, found, shapes, _UNUSED)
    return DFlashWeights(config, tensors, token_ids)


def speculators_form(config: DFlashConfig, target: str) -> dict[str, Any]:
    """config.json of the speculators form. target: the model it is for."""
    return {
        "architectures": ["DFlashDraftModel"],
        "speculators_model_type": "dflash",
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.hidden,
        "aux_hidden_state_layer_ids": list(config.layer_ids),
        "block_size": config.block,
        "mask_token_id": config.mask_token,
        "sample_from_anchor": False,
        "sliding_window_non_causal": False,
        "transformer_layer_config": layers_form(config),
        "speculators_config": proposal("dflash", config.depths, target),
    }


def native_form(config: DFlashConfig) -> dict[str, Any]:
    """config.json of the native form, which counts the layers whose output is read."""
    return {
        "architectures": [NATIVE_ARCHITECTURE],
        **layers_form(config),
        "block_size": config.block,
        "dflash_config": {
            "mask_token_id": config.mask_token,
            "target_layer_ids": [id - 1 for id in config.layer_ids],
        },
    }


def layers_form(config: DFlashConfig) -> dict[str, Any]:
    """The decoder layers as transformers describes them."""
    return {**config.described("qwen3", config.layers), "use_sliding_window": False}


def _speculators(held: Settings) -> DFlashConfig:
    if held.get("speculators_model_type") != "dflash":
        raise held.wrong("speculators_model_type", '"dflash"')
    if held.flag("sample_from_anchor", False):
        raise held.wrong("sample_from_anchor", "false")
    return _checked(held, DFlashConfig(**speculators_fields(held)))


def speculators_fields(held: Settings) -> dict[str, Any]:
    """The fields of `DFlashConfig` in the speculators form. Raises ModelFileError."""
    verifier = None
    if "speculators_config" in held and held.inside("speculators_config").get("verifier"):
        verifier = held.inside("speculators_config").inside("verifier").get("name_or_path")
    return {
        **block_fields(held, held.inside("transformer_layer_config"), held, held),
        "layer_ids": held.ids("aux_hidden_state_layer_ids", 0),
        "verifier": str(verifier or ""),
    }


def _native(held: Settings) -> DFlashConfig:
    if held.get("architectures") != [NATIVE_ARCHITECTURE]:
        raise held.wrong("architectures", f'["{NATIVE_ARCHITECTURE}"], or speculators_model_type')
    return _checked(_blocks(held), DFlashConfig(**native_fields(held)))


def native_fields(held: Settings) -> dict[str, Any]:
    """The fields of `DFlashConfig` in the native form. Raises ModelFileError."""
    own = held.inside("dflash_config")
    for key, neutral in _NATIVE_NEUTRAL.items():
        expect(own, key, neutral)
        expect(held, key, neutral)
    return {**block_fields(held, held, own, _blocks(held)), "layer_ids": own.ids("target_layer_ids", 1)}


def _blocks(held: Settings) -> Settings:
    """Where the size of a block is: newer native folders have it inside."""
    own = held.inside("dflash_config")
    return own if "block_size" in own else held


def _checked(blocks: Settings, config: DFlashConfig) -> DFlashConfig:
    if config.depths < 1:
        raise blocks.wrong("block_size", "at least 2")
    return config


def block_fields(held: Settings, layer: Settings, masks: Settings, blocks: Settings) -> dict[str, Any]:
    """The fields of `DFlashConfig` but for the layer ids and the verifier. held: where the drafter's own
    settings are; layer: where those of its decoder layers are; masks: where the mask token is; blocks: where
    the size of a block is. Raises ModelFileError."""
    for key, neutral in _NEUTRAL.items():
        expect(layer, key, neutral)
    kinds = layer.get("layer_types")
    if kinds is not None and set(kinds) != {"full_attention"}:
        raise layer.wrong("layer_types", '"full_attention" for each layer')
    # Qwen3's head size is not written out.
    decoder = decoder_of(held, layer, head_dim=128, context=32768)
    hidden = decoder["hidden"]
    if held.integer("target_hidden_size", hidden) != hidden:
        raise held.wrong("target_hidden_size", f"the drafter's own {hidden}, for embeddings are shared")
    return {
        **decoder,
        "layers": layer.integer("num_hidden_layers"),
        "block": blocks.integer("block_size"),
        "mask_token": masks.token("mask_token_id", decoder["vocab_size"]),
    }
