"""Folders of EAGLE-3 drafters: config.json and model.safetensors, in the two forms that other engines read.

The form of the speculators library, which vLLM loads, and the native one of EAGLE-3 (SGLang, SpecForge, the
authors' own repository), whose first layer is called `midlayer`. What both say is one frozen record.

Two settings are traps. Layer ids: `eagle_aux_hidden_state_layer_ids` at the top of a config counts as
transformers' `hidden_states` do, where 0 are the embeddings; inside `eagle_config`, where SGLang looks, and
as `target_layer_ids`, i is what layer i yields, which is one more there. `norm_output` missing means false to
vLLM, SGLang and SpecForge; `norm_before_residual` missing means true in the speculators form, false in the
native one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

NATIVE_ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "num_hidden_layers": (1,),
    "mlp_bias": (False,),
}
"""Settings of the decoder layer that are implemented with one value only, beside
`paceline.models.drafter_folder.NEUTRAL`."""

_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")

_UNUSED = {"verifier_lm_head.weight", "verifier_norm.weight", "layers.0.self_attn.rotary_emb.inv_freq"}
"""Tensors that some folders hold and drafting does not need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Config(DecoderConfig):
    """What the forward pass of an EAGLE-3 drafter must know beside its weights.

    target_hidden         width of the target's hidden states
    layer_ids             the target's hidden states that it reads, counted as transformers does: 0 are the
                          embeddings, k is what k layers made of them; None: those of `layers_of` a target
    norm_before_residual  the residual stream starts behind `hidden_norm`, not before
    norm_before_fc        an RMS norm of all hidden states together comes before `fc`
    fc_norm               an RMS norm of each hidden state comes before `fc`
    norm_output           what is fed on is behind the last norm, not before
    draft_tokens          drafted tokens along one path that it was trained for
    """

    target_hidden: int
    layer_ids: tuple[int, ...] | None
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool
    draft_tokens: int = 3

    def layers_of(self, layers: int) -> tuple[int, ...]:
        """The hidden states that it reads of a target with so many layers. Raises IncompatibleDrafter."""
        return held_layers(self.layer_ids or (2, layers // 2, layers - 3), layers)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that every such drafter has, and their shapes."""
        c, q, kv = self, self.heads * self.head_dim, self.kv_heads * self.head_dim
        states = len(self.layer_ids or (0, 0, 0))
        shapes: dict[str, tuple[int, ...]] = {
            "fc.weight": (c.hidden, states * c.target_hidden),
            "layers.0.input_layernorm.weight": (c.hidden,),
            "layers.0.hidden_norm.weight": (c.hidden,),
            "layers.0.self_attn.q_proj.weight": (q, 2 * c.hidden),
            "layers.0.self_attn.k_proj.weight": (kv, 2 * c.hidden),
            "layers.0.self_attn.v_proj.weight": (kv, 2 * c.hidden),
            "layers.0.self_attn.o_proj.weight": (c.hidden, q),
            "layers.0.post_attention_layernorm.weight": (c.hidden,),
            "layers.0.mlp.gate_proj.weight": (c.ffn, c.hidden),
            "layers.0.mlp.up_proj.weight": (c.ffn, c.hidden),
            "layers.0.mlp.down_proj.weight": (c.hidden, c.ffn),
            "norm.weight": (c.hidden,),
            "lm_head.weight": (c.draft_vocab_size, c.hidden),
        }
        if self.norm_before_fc:
            shapes["input_norm.weight"] = (states * c.target_hidden,)
        if self.fc_norm:
            shapes |= {f"fc_norm.{i}.weight": (c.target_hidden,) for i in range(states)}
        return shapes


@dataclass(frozen=True, slots=True)
class Eagle3Weights:
    """An EAGLE-3 drafter as its folder describes it.

    tensors    float32, by the names of `Eagle3Config.shapes`; "embed_tokens.weight" [vocab_size, hidden] too
               where it has embeddings of its own and does not use the target's
    token_ids  int64 [draft_vocab_size]: the target's id of each token it can propose
    """

    config: Eagle3Config
    tensors: Mapping[str, Floats]
    token_ids: NDArray[np.int64]


def read_eagle3(folder: Path) -> Eagle3Weights:
    """The drafter in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    config = _speculators(held) if "speculators_model_type" in held else _native(held)
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    found = {
        name.removeprefix("model.").replace("midlayer.", "layers.0."): tensor
        for name, tensor in read_safetensors(path).items()
    }
    shapes = config.shapes
    if "embed_tokens.weight" in found:
        shapes["embed_tokens.weight"] = (config.vocab_size, config.hidden)
    token_ids = token_ids_of(
        path, config.vocab_size, config.draft_vocab_size, found.pop("d2t", None), found.pop("t2d", None)
    )
    tensors = taken(path, found, shapes, _UNUSED)
    return Eagle3Weights(config, tensors, token_ids)


def _speculators(held: Settings) -> Eagle3Config:
    if held.get("speculators_model_type") != "eagle3":
        raise held.wrong("speculators_model_type", '"eagle3"')
    verifier = draft_tokens = None
    if "speculators_config" in held:
        described = held.inside("speculators_config")
        if described.get("verifier"):
            verifier = described.inside("verifier").get("name_or_path")
        methods = described.get("proposal_methods")
        if isinstance(methods, list) and methods and isinstance(methods[0], dict):
            draft_tokens = Settings(held.path, methods[0]).integer("speculative_tokens", 3)
    return _config(
        held,
        held.inside("transformer_layer_config"),
        layer_ids=_ids(held, (("eagle_aux_hidden_state_layer_ids", 0),)),
        norm_before_residual=held.flag("norm_before_residual", True),
        verifier=str(verifier or ""),
        draft_tokens=draft_tokens or 3,
    )


def _native(held: Settings) -> Eagle3Config:
    named = held.get("architectures")
    if not isinstance(named, list) or not any(one in NATIVE_ARCHITECTURES for one in named):
        raise held.wrong(
            "architectures", f"one of {', '.join(NATIVE_ARCHITECTURES)}, or speculators_model_type"
        )
    layer_ids = _ids(held, (("eagle_aux_hidden_state_layer_ids", 0), ("target_layer_ids", 1)))
    if layer_ids is None and held.get("eagle_config"):
        layer_ids = _ids(held.inside("eagle_config"), (("eagle_aux_hidden_state_layer_ids", 1),))
    return _config(
        held, held, layer_ids=layer_ids, norm_before_residual=held.flag("norm_before_residual", False)
    )


def _ids(held: Settings, keys: tuple[tuple[str, int], ...]) -> tuple[int, ...] | None:
    """The ids under the first key that is there, with what must be added to them."""
    return next((held.ids(key, added) for key, added in keys if held.get(key) is not None), None)


def _config(held: Settings, layer: Settings, **known: Any) -> Eagle3Config:
    """held: where the drafter's own settings are; layer: where those of its decoder layer are."""
    for key, neutral in _NEUTRAL.items():
        expect(layer, key, neutral)
    decoder = decoder_of(held, layer, head_dim=None, context=2048)
    return Eagle3Config(
        **decoder,
        target_hidden=held.integer("target_hidden_size", decoder["hidden"]),
        norm_before_fc=held.flag("norm_before_fc", False),
        fc_norm=held.flag("fc_norm", False),
        norm_output=held.flag("norm_output", False),
        **known,
    )


def speculators_form(config: Eagle3Config, ids: Sequence[int], target: str) -> dict[str, Any]:
    """config.json of the speculators form. ids: the hidden states that are read, counted as in
    `Eagle3Config.layer_ids`; target: the model it is for."""
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        **_own(config),
        "eagle_aux_hidden_state_layer_ids": list(ids),
        "transformer_layer_config": _layer(config),
        "speculators_config": proposal("eagle3", config.draft_tokens, target),
    }


def native_form(config: Eagle3Config, ids: Sequence[int]) -> dict[str, Any]:
    """config.json as SGLang reads it, which counts the layers whose output is read: one less."""
    return {
        "architectures": [NATIVE_ARCHITECTURES[0]],
        **_layer(config),
        **_own(config),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [id - 1 for id in ids],
        },
    }


def _layer(config: Eagle3Config) -> dict[str, Any]:
    return {**config.described("llama", 1), "mlp_bias": False}


def _own(config: Eagle3Config) -> dict[str, Any]:
    """Flags are never left out: engines guess differently where they are missing."""
    return {
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden,
        **{flag: getattr(config, flag) for flag in _FLAGS},
    }
