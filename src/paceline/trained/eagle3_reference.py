"""The forward pass of an EAGLE-3 drafter in NumPy: slow, without a cache, to be read beside the paper.

Slot t of a text x reads token x[t+1] and the target's hidden states at position t, and says what x[t+2] may
be. Where the target has not been, the drafter's own output of slot t - 1 takes the place of its hidden
states.

Rotary positions are those of the slots, from 0 on; only their differences matter.

Source: Li et al., "EAGLE-3", 2025 (arXiv 2503.01840); the places of the norms are those of the authors'
code and of vLLM (vllm/model_executor/models/llama_eagle3.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.eagle3_folder import Eagle3Weights


def fuse(weights: Eagle3Weights, hidden_states: Sequence[Floats]) -> Floats:
    """Features float32 [N, hidden] of the target's hidden states, float32 [N, target_hidden] each, in the
    order of the config's layer ids."""
    config, tensors = weights.config, weights.tensors
    if config.fc_norm:
        hidden_states = [
            norm(states, tensors[f"fc_norm.{i}.weight"], config.norm_eps)
            for i, states in enumerate(hidden_states)
        ]
    joined = np.concatenate(hidden_states, axis=-1)
    if config.norm_before_fc:
        joined = norm(joined, tensors["input_norm.weight"], config.norm_eps)
    return joined @ tensors["fc.weight"].T


def forward(weights: Eagle3Weights, embedded: Floats, features: Floats) -> tuple[Floats, Floats]:
    """Logits float32 [N, draft_vocab_size] of the slots 0 to N - 1, and what each would feed on to the next,
    float32 [N, hidden].

    embedded: float32 [N, hidden], the embeddings of x[1] to x[N]; features: float32 [N, hidden], of `fuse` or
    fed on by the slot before.
    """
    config, tensors = weights.config, weights.tensors
    normed = norm(features, tensors["layers.0.hidden_norm.weight"], config.norm_eps)
    residual = normed if config.norm_before_residual else features
    for number in range(config.layers):
        at = f"layers.{number}."
        layer = {
            name.removeprefix(at).removesuffix(".weight"): tensor
            for name, tensor in tensors.items()
            if name.startswith(at)
        }
        if number == 0:
            read = norm(embedded, layer["input_layernorm"], config.norm_eps)
            read = np.concatenate([read, normed], axis=-1)
        else:
            read = norm(residual, layer["input_layernorm"], config.norm_eps)
        residual = residual + _attention(config.frequencies, layer, read, config.heads, config.kv_heads)
        read = norm(residual, layer["post_attention_layernorm"], config.norm_eps)
        gate = read @ layer["mlp.gate_proj"].T
        activated = gate / (1 + np.exp(-gate)) * (read @ layer["mlp.up_proj"].T)
        residual = residual + activated @ layer["mlp.down_proj"].T
    normed = norm(residual, tensors["norm.weight"], config.norm_eps)
    return normed @ tensors["lm_head.weight"].T, normed if config.norm_output else residual


def follow(
    weights: Eagle3Weights, embedding: Floats, tokens: Sequence[int], features: Floats, path: Sequence[int]
) -> Floats:
    """Logits float32 [draft_vocab_size] after a text and a drafted path below it.

    embedding: float32 [vocab_size, hidden]; tokens: the text x[0] to x[N], at least two; features: float32
    [N, hidden] of its positions but the last.
    """
    read = list(tokens[1:])
    for token in (*path, None):
        logits, fed_on = forward(weights, embedding[read], features)
        if token is not None:
            read.append(token)
            features = np.concatenate([features, fed_on[-1:]])
    last: Floats = logits[-1]
    return last


def _attention(
    frequencies: np.ndarray, layer: dict[str, Floats], read: Floats, heads: int, kv_heads: int
) -> Floats:
    """What causal attention with grouped queries adds: [N, hidden]."""
    n, dim = len(read), 2 * len(frequencies)

    def project(name: str, count: int) -> Floats:
        projected: Floats = (read @ layer[f"self_attn.{name}_proj"].T).reshape(n, count, dim)
        return projected.repeat(heads // count, axis=1)

    q = _rotate(project("q", heads), frequencies)
    k = _rotate(project("k", kv_heads), frequencies)
    scores = np.einsum("ihd,jhd->hij", q, k) / np.float32(np.sqrt(dim))
    scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    attended = np.einsum("hij,jhd->ihd", shares, project("v", kv_heads)).reshape(n, -1)
    added: Floats = attended @ layer["self_attn.o_proj"].T
    return added


def _rotate(x: Floats, frequencies: np.ndarray) -> Floats:
    """Rotary positions (Su et al., 2021) on the pairs (i, i + dim/2) of x [N, heads, dim]."""
    angles = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Root mean square norm (Zhang & Sennrich, 2019)."""
    mean = (x * x).mean(-1, keepdims=True, dtype=np.float32)
    normed: Floats = x / np.sqrt(mean + np.float32(eps)) * weight
    return normed
