"""The forward pass of a DFlash drafter in NumPy: slow, without a cache, to be read beside the paper.

A block stands behind a text of N tokens whose hidden states are known: first the token that comes next, at
position N, then a mask token in the place of each drafted one. Every layer attends, in both directions, to
the whole block and to keys and values that it makes of the target's hidden states of the text. What the last
layer makes of mask j says what the token at position N + j may be, without knowing those before it.

Source: "DFlash: Block Diffusion for Flash Speculative Decoding", 2026 (arXiv 2602.06036); the places of the
norms are those of vLLM (vllm/model_executor/models/qwen3_dflash.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from paceline.models.dflash_folder import DFlashWeights
from paceline.models.drafter_folder import Floats
from paceline.trained.eagle3_reference import norm

Layer = Mapping[str, Floats]
Inner = Callable[[Floats], Floats]
Around = Callable[[Layer, str, Floats, Inner], Floats]


def inject(weights: DFlashWeights, hidden_states: Sequence[Floats]) -> Floats:
    """What the layers read of a text, float32 [N, hidden]. hidden_states: the target's, float32 [N, hidden]
    each, in the order of the config's layer ids."""
    tensors = weights.tensors
    fused = np.concatenate(hidden_states, axis=-1) @ tensors["fc.weight"].T
    return norm(fused, tensors["hidden_norm.weight"], weights.config.norm_eps)


def forward(weights: DFlashWeights, head: Floats, embedded: Floats, injected: Floats) -> Floats:
    """Logits float32 [depths, draft_vocab_size] of the drafted tokens behind a text.

    head: float32 [draft_vocab_size, hidden]; the rest as for `denoise`.
    """
    return denoise(weights, embedded, injected) @ head.T


def straight(layer: Layer, name: str, read: Floats, inner: Inner) -> Floats:
    """What is done around a part of a layer: nothing."""
    return inner(read)


def denoise(weights: DFlashWeights, embedded: Floats, injected: Floats, around: Around = straight) -> Floats:
    """What the head reads of each drafted token's slot, float32 [depths, hidden].

    embedded: float32 [block, hidden], the embeddings of the next token and of the masks; injected: float32
    [N, hidden], of `inject`; around: what is done around the attention and the feed-forward part of a layer.
    """
    config, x = weights.config, embedded
    for number in range(config.layers):
        at = f"layers.{number}."
        layer = {
            name.removeprefix(at).removesuffix(".weight"): tensor
            for name, tensor in weights.tensors.items()
            if name.startswith(at)
        }
        read = norm(x, layer["input_layernorm"], config.norm_eps)
        x = x + around(layer, "attention", read, partial(_attention, weights, layer, injected))
        read = norm(x, layer["post_attention_layernorm"], config.norm_eps)
        x = x + around(layer, "mlp", read, partial(_mlp, layer))
    return norm(x[config.block - config.depths :], weights.tensors["norm.weight"], config.norm_eps)


def _mlp(layer: Layer, read: Floats) -> Floats:
    """The gated feed-forward part, [block, hidden]."""
    gate = read @ layer["mlp.gate_proj"].T
    activated = gate / (1 + np.exp(-gate)) * (read @ layer["mlp.up_proj"].T)
    out: Floats = activated @ layer["mlp.down_proj"].T
    return out


def _attention(weights: DFlashWeights, layer: Layer, injected: Floats, read: Floats) -> Floats:
    """What the block attends to, [block, hidden]: keys and values of the text, then its own."""
    config, both = weights.config, np.concatenate([injected, read])
    positions = np.arange(len(both))

    def heads(x: Floats, name: str, count: int) -> Floats:
        projected: Floats = (x @ layer[f"self_attn.{name}_proj"].T).reshape(len(x), count, config.head_dim)
        return projected

    q = norm(heads(read, "q", config.heads), layer["self_attn.q_norm"], config.norm_eps)
    k = norm(heads(both, "k", config.kv_heads), layer["self_attn.k_norm"], config.norm_eps)
    q = rotate(q, positions[len(injected) :], config.frequencies)
    k = rotate(k, positions, config.frequencies)
    group = config.heads // config.kv_heads
    scores = np.einsum("ihd,jhd->hij", q, k.repeat(group, axis=1)) / np.float32(np.sqrt(config.head_dim))
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    values = heads(both, "v", config.kv_heads).repeat(group, axis=1)
    added: Floats = np.einsum("hij,jhd->ihd", shares, values).reshape(len(read), -1)
    return added @ layer["self_attn.o_proj"].T


def rotate(x: Floats, positions: np.ndarray, frequencies: np.ndarray) -> Floats:
    """Rotary positions (Su et al., 2021) on the pairs (i, i + dim/2) of x [N, heads, dim]."""
    angles = positions[:, None, None] * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
