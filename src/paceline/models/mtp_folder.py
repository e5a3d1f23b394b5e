"""Folders of MTP modules: config.json and model.safetensors, in the form of the speculators library.

A module has the target's embeddings and the target's head, so a folder holds neither. That form knows no
reduced vocabulary. Ours may have one, for it is only a matter of which of the head's rows are looked at:
`draft_vocab_size`, and d2t and t2d as folders of EAGLE-3 have them.

The layer is Qwen3's, the only dense one that the library has such modules of, whatever the target's is.
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
    proposal,
    read_json,
    taken,
    token_ids_of,
)
from paceline.models.safetensors_file import read_safetensors

MODULE = "mtp_layers.0."
"""What the names of all its tensors begin with."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "model_type": ("qwen3",),
    "use_sliding_window": (False,),
}
"""Settings of the decoder layer that are implemented with these values only, beside
`paceline.models.drafter_folder.NEUTRAL`."""

_UNUSED = {"embed_tokens.weight", "lm_head.weight", "verifier_lm_head.weight"}
"""Tensors of the target that some folders hold, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MtpConfig(DecoderConfig):
    """What the forward pass of an MTP module must know beside its weights.

    hidden         width of its layer, and of the target's embeddings and hidden states
    target_layers  how many the target has; the form describes all of it
    draft_tokens   drafted tokens along one path that it was trained for
    """

    target_layers: int
    draft_tokens: int = 3

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that every such module has, and their shapes."""
        hidden, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "hidden_layernorm": (hidden,),
            "token_layernorm": (hidden,),
            "input_proj": (hidden, 2 * hidden),
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
            "final_layernorm": (hidden,),
        }
        return {f"{MODULE}{name}.weight": shape for name, shape in shapes.items()}


@dataclass(frozen=True, slots=True)
class MtpWeights:
    """An MTP module as its folder describes it.

    tensors    float32, by the names of `MtpConfig.shapes`
    token_ids  int64 [draft_vocab_size]: the target's id of each token it can propose
    """

    config: MtpConfig
    tensors: Mapping[str, Floats]
    token_ids: NDArray[np.int64]

    @property
    def parts(self) -> dict[str, Floats]:
        """The tensors by their names inside of the module."""
        return {
            name.removeprefix(MODULE).removesuffix(".weight"): tensor for name, tensor in self.tensors.items()
        }


def read_mtp(folder: Path) -> MtpWeights:
    """The module in a folder. Raises ModelFileError naming what is wrong with it."""
    config = _config(Settings(folder / CONFIG, read_json(folder / CONFIG)))
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    found = {name.removeprefix("model."): tensor for name, tensor in read_safetensors(path).items()}
    token_ids = token_ids_of(
        path, config.vocab_size, config.draft_vocab_size, found.pop("d2t", None), found.pop("t2d", None)
    )
    return MtpWeights(config, taken(path, found, config.shapes, _UNUSED), token_ids)


def speculators_form(config: MtpConfig, target: str) -> dict[str, Any]:
    """config.json of the speculators form. target: the model it is for."""
    reduced = config.draft_vocab_size < config.vocab_size
    return {
        "architectures": ["MTPDraftModel"],
        "speculators_model_type": "mtp",
        "num_nextn_predict_layers": 1,
        **({"draft_vocab_size": config.draft_vocab_size} if reduced else {}),
        "transformer_layer_config": {
            **config.described("qwen3", config.target_layers),
            "use_sliding_window": False,
        },
        "speculators_config": proposal("mtp", config.draft_tokens, target),
    }


def _config(held: Settings) -> MtpConfig:
    if held.get("speculators_model_type") != "mtp":
        raise held.wrong("speculators_model_type", '"mtp"')
    expect(held, "num_nextn_predict_layers", (1,))
    expect(held, "num_centroids", (None,))
    layer = held.inside("transformer_layer_config")
    for key, neutral in _NEUTRAL.items():
        expect(layer, key, neutral)
    kinds = layer.get("layer_types")
    if kinds is not None and set(kinds) != {"full_attention"}:
        raise layer.wrong("layer_types", '"full_attention" for each layer')
    described = held.inside("speculators_config")
    methods = described.get("proposal_methods")
    known: dict[str, Any] = {}
    if isinstance(methods, list) and methods and isinstance(methods[0], dict):
        known["draft_tokens"] = Settings(held.path, methods[0]).integer("speculative_tokens", 3)
    verifier = described.inside("verifier").get("name_or_path") if described.get("verifier") else None
    return MtpConfig(
        # Qwen3's head size is not written out.
        **decoder_of(held, layer, head_dim=128, context=32768),
        verifier=str(verifier or ""),
        target_layers=layer.integer("num_hidden_layers"),
        **known,
    )
