"""The forward pass of a model of Llama's form in NumPy: slow, to be read beside the paper.

Source: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023 (arXiv 2302.13971);
grouped queries: Ainslie et al., "GQA", 2023 (arXiv 2305.13245).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.llama_folder import EMBEDDING, HEAD, NORM, LlamaWeights


def forward(weights: LlamaWeights, text: Sequence[int], layers: int | None = None) -> Floats:
    """Logits float32 [n, V] of the token behind each of the n tokens of a text. layers: the first ones that
    are run, None: all."""
    config, tensors = weights.config, weights.tensors
    x: Floats = tensors[EMBEDDING][list(text)]
    for layer in range(config.layers if layers is None else layers):
        x = _layer(weights, f"model.layers.{layer}.", x)
    head = tensors[EMBEDDING if config.tied else HEAD]
    logits: Floats = _norm(weights, x, NORM) @ head.T
    return logits


def _layer(weights: LlamaWeights, at: str, x: Floats) -> Floats:
    config, n = weights.config, len(x)
    part = {name.removeprefix(at): tensor for name, tensor in weights.tensors.items() if name.startswith(at)}
    read = _norm(weights, x, at + "input_layernorm.weight")
    q, k, v = (
        (read @ part[f"self_attn.{name}_proj.weight"].T).reshape(n, -1, config.head_dim) for name in "qkv"
    )
    q, k = _rotated(weights, q), _rotated(weights, k)
    groups = config.heads // config.kv_heads
    attended = np.empty_like(q)
    for head in range(config.heads):
        scores = q[:, head] @ k[:, head // groups].T * np.float32(config.query_scale)
        scores[np.triu_indices(n, 1)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended[:, head] = shares / shares.sum(-1, keepdims=True) @ v[:, head // groups]
    x = x + attended.reshape(n, -1) @ part["self_attn.o_proj.weight"].T
    read = _norm(weights, x, at + "post_attention_layernorm.weight")
    gate = read @ part["mlp.gate_proj.weight"].T
    gate = gate * (1 + np.tanh(gate / 2)) / 2  # SiLU, without powers that are too large
    out: Floats = x + (gate * (read @ part["mlp.up_proj.weight"].T)) @ part["mlp.down_proj.weight"].T
    return out


def _norm(weights: LlamaWeights, x: Floats, name: str) -> Floats:
    mean = (x * x).mean(-1, keepdims=True, dtype=np.float32)
    normed: Floats = x / np.sqrt(mean + np.float32(weights.config.norm_eps)) * weights.tensors[name]
    return normed


def _rotated(weights: LlamaWeights, x: Floats) -> Floats:
    """Rotary positions on the pairs (i, i + dim/2) of x [n, heads, dim]."""
    config = weights.config
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angles = np.arange(len(x))[:, None, None] * frequencies / config.rope_scaling
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    left, right = np.split(x, 2, -1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)
