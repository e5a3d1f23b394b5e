"""Folders of EAGLE-3 drafters: config.json and model.safetensors, in the two forms that other engines read.

The form of the speculators library, which vLLM loads, and the native one of EAGLE-3 (SGLang, SpecForge, the
authors' own repository), whose first layer is called `midlayer`. What both say is one frozen record.

Drafters of P-EAGLE have the same layers and, beside them, what slots read whose token is not known yet: a
mask token, and `mask_hidden` in place of the target's hidden states.

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
    "mlp_bias": (False,),
}
"""Settings of the decoder layers that are implemented with one value only, beside
`paceline.models.drafter_folder.NEUTRAL`."""

_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")

MASK_HIDDEN = "mask_hidden"
"""What a P-EAGLE drafter reads in place of hidden states, [1, 1, states * target_hidden]."""

_MASK_TOKENS = ("mask_token_id", "pard_token", "ptd_token_id")
"""What folders call the mask token; the first is the speculators form's."""

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
    layers                decoder layers; only the first reads embeddings
    mask_token            the token whose embedding P-EAGLE reads where the token is not known yet; None: the
                          drafter is EAGLE-3's
    """

    target_hidden: int
    layer_ids: tuple[int, ...] | None
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool
    draft_tokens: int = 3
    layers: int = 1
    mask_token: int | None = None

    @property
    def kind(self) -> str:
        """ "eagle3" or "peagle"."""
        return "eagle3" if self.mask_token is None else "peagle"

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
            "layers.0.hidden_norm.weight": (c.hidden,),
            "norm.weight": (c.hidden,),
            "lm_head.weight": (c.draft_vocab_size, c.hidden),
        }
        for number in range(self.layers):
            at, read = f"layers.{number}.", c.hidden if number else 2 * c.hidden
            shapes |= {
                at + "input_layernorm.weight": (c.hidden,),
                at + "self_attn.q_proj.weight": (q, read),
                at + "self_attn.k_proj.weight": (kv, read),
                at + "self_attn.v_proj.weight": (kv, read),
                at + "self_attn.o_proj.weight": (c.hidden, q),
                at + "post_attention_layernorm.weight": (c.hidden,),
                at + "mlp.gate_proj.weight": (c.ffn, c.hidden),
                at + "mlp.up_proj.weight": (c.ffn, c.hidden),
                at + "mlp.down_proj.weight": (c.hidden, c.ffn),
            }
        if self.mask_token is not None:
            shapes[MASK_HIDDEN] = (1, 1, states * c.target_hidden)
        if self.norm_before_fc:
            shapes["input_norm.weight"] = (states * c.target_hidden,)
        if self.fc_norm:
            shapes |= {f"fc_norm.{i}.weight": (c.target_hidden,) for i in range(states)}
        return shapes


@dataclass(frozen=True, slots=True)
class Eagle3Weights:
    """An EAGLE-3 or P-EAGLE drafter as its folder describes it.

    tensors    float32, by the names of `Eagle3Config.shapes`; "embed_tokens.weight" [vocab_size, hidden] too
               where it has embeddings of its own and does not use the target's
    token_ids  int64 [draft_vocab_size]: the target's id of each token it can propose
    """

    config: Eagle3Config
    tensors: Mapping[str, Floats]
    token_ids: NDArray[np.int64]


def is_peagle(held: Mapping[str, Any]) -> bool:
    """Whether a config.json says that it is a P-EAGLE drafter's."""
    native = "speculators_model_type" not in held and any(held.get(key) is not None for key in _MASK_TOKENS)
    return held.get("speculators_model_type") == "peagle" or (
        native and any(one in NATIVE_ARCHITECTURES for one in held.get("architectures") or ())
    )


def read_eagle3(folder: Path, kind: str = "eagle3") -> Eagle3Weights:
    """The drafter in a folder, which must be of that kind, see `Eagle3Config.kind`. Raises ModelFileError
    naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    config = _speculators(held, kind) if "speculators_model_type" in held else _native(held, kind)
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    found = {
        name.removeprefix("model.").replace("midlayer.", "layers.0."): tensor
        for name, tensor in read_safetensors(path).items()
    }
    if MASK_HIDDEN in found:  # some folders have it without the dimensions of length one
        found[MASK_HIDDEN] = found[MASK_HIDDEN].reshape(1, 1, -1)
    shapes = config.shapes
    if "embed_tokens.weight" in found:
        shapes["embed_tokens.weight"] = (config.vocab_size, config.hidden)
    token_ids = token_ids_of(
        path, config.vocab_size, config.draft_vocab_size, found.pop("d2t", None), found.pop("t2d", None)
    )
    tensors = taken(path, found, shapes, _UNUSED)
    return Eagle3Weights(config, tensors, token_ids)


def _speculators(held: Settings, kind: str) -> Eagle3Config:
    if held.get("speculators_model_type") != kind:
        raise held.wrong("speculators_model_type", f'"{kind}"')
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
        kind,
        layer_ids=_ids(held, (("eagle_aux_hidden_state_layer_ids", 0),)),
        norm_before_residual=held.flag("norm_before_residual", True),
        verifier=str(verifier or ""),
        draft_tokens=draft_tokens or 3,
    )


def _native(held: Settings, kind: str) -> Eagle3Config:
    named = held.get("architectures")
    if not isinstance(named, list) or not any(one in NATIVE_ARCHITECTURES for one in named):
        raise held.wrong(
            "architectures", f"one of {', '.join(NATIVE_ARCHITECTURES)}, or speculators_model_type"
        )
    layer_ids = _ids(held, (("eagle_aux_hidden_state_layer_ids", 0), ("target_layer_ids", 1)))
    if layer_ids is None and held.get("eagle_config"):
        layer_ids = _ids(held.inside("eagle_config"), (("eagle_aux_hidden_state_layer_ids", 1),))
    return _config(
        held, held, kind, layer_ids=layer_ids, norm_before_residual=held.flag("norm_before_residual", False)
    )


def _ids(held: Settings, keys: tuple[tuple[str, int], ...]) -> tuple[int, ...] | None:
    """The ids under the first key that is there, with what must be added to them."""
    return next((held.ids(key, added) for key, added in keys if held.get(key) is not None), None)


def _config(held: Settings, layer: Settings, kind: str, **known: Any) -> Eagle3Config:
    """held: where the drafter's own settings are; layer: where those of its decoder layers are."""
    for key, neutral in _NEUTRAL.items():
        expect(layer, key, neutral)
    decoder = decoder_of(held, layer, head_dim=None, context=2048)
    masks = [key for key in _MASK_TOKENS if held.get(key) is not None]
    if kind == "eagle3" and masks:
        raise held.wrong(masks[0], "none: P-EAGLE has one, and is drafted with as peagle")
    if kind == "peagle":
        key = masks[0] if masks else _MASK_TOKENS[0]
        known["mask_token"] = held.token(key, decoder["vocab_size"])
    return Eagle3Config(
        **decoder,
        layers=layer.integer("num_hidden_layers", 1),
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
        "architectures": ["Eagle3DraftModel" if config.mask_token is None else "PEagleDraftModel"],
        "speculators_model_type": config.kind,
        **_own(config),
        **({} if config.mask_token is None else {_MASK_TOKENS[0]: config.mask_token}),
        "eagle_aux_hidden_state_layer_ids": list(ids),
        "transformer_layer_config": _layers(config),
        "speculators_config": proposal(config.kind, config.draft_tokens, target),
    }


def native_form(config: Eagle3Config, ids: Sequence[int]) -> dict[str, Any]:
    """config.json as SGLang reads it, which counts the layers whose output is read: one less."""
    return {
        "architectures": [NATIVE_ARCHITECTURES[0]],
        **_layers(config),
        **_own(config),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [id - 1 for id in ids],
        },
    }


def _layers(config: Eagle3Config) -> dict[str, Any]:
    return {**config.described("llama", config.layers), "mlp_bias": False}


def _own(config: Eagle3Config) -> dict[str, Any]:
    """Flags are never left out: engines guess differently where they are missing."""
    return {
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden,
        **{flag: getattr(config, flag) for flag in _FLAGS},
    }
