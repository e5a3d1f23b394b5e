"""Tiny random models of many architectures, made by transformers' own classes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 96

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "cohere": {},
    "cohere2": {"sliding_window": 6},
    "deepseek_v3": {
        "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    },
    "exaone4": {"sliding_window": 6},
    "gemma": {},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "glm4": {},
    "gpt2": {"n_positions": 128, "n_embd": 32, "n_layer": 3, "n_head": 4},
    "gpt_neox": {},
    "gpt_oss": {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {},
    "helium": {},
    "llama": {},
    "llama4_text": {
        "attention_chunk_size": 6, "num_local_experts": 2, "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48, "use_qk_norm": False,
    },
    "mistral": {"sliding_window": 6},
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "stablelm": {},
    "starcoder2": {"sliding_window": 6},
}  # fmt: skip
"""{model type: what its config says beside COMMON}."""


def small(family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A model whose answers are varied: random weights, far from uniform laws. The same at every call."""
    torch.manual_seed(sum(map(ord, family)))
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES.get(family, {}), **settings})
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    made.generation_config.pad_token_id = 0
    return made


@cache
def model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """As `small`, one object for all tests."""
    return small(family, dtype)
