"""Folders of whole models of Llama's form, in float: config.json and model.safetensors as transformers names
them, which vLLM loads, too.

Draft models are kept so. They have no tokenizer of their own: their tokens are the target's.

Source: transformers, models/llama (configuration and names of tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import ModelFileError
from paceline.models.config import ModelConfig
from paceline.models.drafter_folder import (
    CONFIG,
    TENSORS,
    DecoderConfig,
    Floats,
    Settings,
    decoder_of,
    expect,
    read_json,
    taken,
)
from paceline.models.safetensors_file import read_safetensors

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
NAMES = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight", HEAD: "output.weight"}
"""{name of a tensor here: in GGUF files}, outside of the layers."""
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""The same for the parts of a layer."""

KIND, CLASS = "llama", "LlamaForCausalLM"


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """A model as its folder describes it.

    config   of architecture "llama", its rotary pairs being halves of a head
    tensors  float32, by the names of `shapes`
    """

    config: ModelConfig
    tensors: Mapping[str, Floats]


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of such a model, and their shapes."""
    hidden, wide, narrow = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), NORM: (hidden,)}
    if not config.tied:
        found[HEAD] = (config.vocab_size, hidden)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (wide, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, wide),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (config.ffn, hidden),
        "mlp.up_proj": (config.ffn, hidden),
        "mlp.down_proj": (hidden, config.ffn),
    }
    for number in range(config.layers):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found


def gguf_name(name: str) -> str:
    """What GGUF files call a tensor of `shapes`."""
    if name in NAMES:
        return NAMES[name]
    number, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{number}.{LAYER_NAMES[part]}.weight"


def described(config: ModelConfig) -> dict[str, Any]:
    """The config.json of such a model."""
    scaling = {"rope_type": "linear", "factor": config.rope_scaling} if config.rope_scaling != 1 else {}
    decoder = DecoderConfig(
        hidden=config.hidden,
        ffn=config.ffn,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        norm_eps=config.norm_eps,
        vocab_size=config.vocab_size,
        draft_vocab_size=config.vocab_size,
        context=config.context,
        rope_theta=config.rope_theta,
        rope_scaling=scaling,
    )
    return {
        "architectures": [CLASS],
        **decoder.described(KIND, config.layers),
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        "dtype": "bfloat16",
    }


def read_llama(folder: Path) -> LlamaWeights:
    """The model in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    if held.get("model_type") != KIND:
        raise held.wrong("model_type", f'"{KIND}"')
    expect(held, "mlp_bias", (False,))
    layer = decoder_of(held, held, head_dim=None, context=2048)
    scaling = layer["rope_scaling"]
    if scaling.get("rope_type", "linear") != "linear":
        raise ModelFileError(f"{held.path}: rotary frequencies that are scaled otherwise than linearly")
    config = llama_config(
        name=folder.name,
        layers=held.integer("num_hidden_layers"),
        hidden=layer["hidden"],
        ffn=layer["ffn"],
        heads=layer["heads"],
        kv_heads=layer["kv_heads"],
        head_dim=layer["head_dim"],
        vocab_size=layer["vocab_size"],
        context=layer["context"],
        rope_theta=layer["rope_theta"],
        rope_scaling=scaling.get("factor", 1.0),
        norm_eps=layer["norm_eps"],
        tied=held.flag("tie_word_embeddings", False),
    )
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    unused = {HEAD} if config.tied else set()
    return LlamaWeights(config, taken(path, read_safetensors(path), shapes(config), unused))


def llama_config(**fields: Any) -> ModelConfig:
    """The config of a model of this form; fields: those of ModelConfig that say how large it is."""
    return ModelConfig(
        **fields,
        architecture=KIND,
        rope_interleaved=False,
        query_scale=fields["head_dim"] ** -0.5,
    )
