"""The forward pass of an MTP module in NumPy: slow, without a cache, to be read beside the paper.

Slot t of a text x reads token x[t+1] and the target's last hidden state at position t, behind the target's
last norm, and says what x[t+2] may be. Where the target has not been, the module's own output of slot t - 1,
behind its last norm, takes the place of that state. Embeddings and head are the target's.

Rotary positions are those of the slots, from 0 on; only their differences matter.

Source: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024 (arXiv 2412.19437), section 2.2; the order in which
embedding and state are put together, and what is fed on, are those of the speculators library
(speculators/models/mtp).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.mtp_folder import MtpConfig, MtpWeights
from paceline.trained.dflash_reference import rotate
from paceline.trained.eagle3_reference import norm


def forward(weights: MtpWeights, head: Floats, embedded: Floats, states: Floats) -> tuple[Floats, Floats]:
    """Logits float32 [N, D] of the slots 0 to N - 1, and what each would feed on to the next, float32
    [N, hidden].

    head: float32 [D, hidden], the target's rows of the tokens that are proposed; embedded: float32
    [N, hidden], the embeddings of x[1] to x[N]; states: float32 [N, hidden], the target's, or fed on by the
    slot before.
    """
    config, parts = weights.config, weights.parts
    read = [norm(embedded, parts["token_layernorm"], config.norm_eps)]
    read.append(norm(states, parts["hidden_layernorm"], config.norm_eps))
    x = np.concatenate(read, axis=-1) @ parts["input_proj"].T
    x = x + _attention(config, parts, norm(x, parts["input_layernorm"], config.norm_eps))
    within = norm(x, parts["post_attention_layernorm"], config.norm_eps)
    gate = within @ parts["mlp.gate_proj"].T
    activated = gate / (1 + np.exp(-gate)) * (within @ parts["mlp.up_proj"].T)
    fed_on = norm(x + activated @ parts["mlp.down_proj"].T, parts["final_layernorm"], config.norm_eps)
    return fed_on @ head.T, fed_on


def follow(
    weights: MtpWeights,
    head: Floats,
    embedding: Floats,
    tokens: Sequence[int],
    states: Floats,
    path: Sequence[int],
) -> Floats:
    """Logits float32 [D] after a text and a drafted path below it.

    head: see `forward`; embedding: float32 [vocab_size, hidden]; tokens: the text x[0] to x[N], at least two;
    states: float32 [N, hidden], the target's last of its positions but the last.
    """
    read = list(tokens[1:])
    for token in (*path, None):
        logits, fed_on = forward(weights, head, embedding[read], states)
        if token is not None:
            read.append(token)
            states = np.concatenate([states, fed_on[-1:]])
    last: Floats = logits[-1]
    return last


def _attention(config: MtpConfig, parts: dict[str, Floats], read: Floats) -> Floats:
    """What causal attention with grouped queries adds: [N, hidden]."""
    positions, group = np.arange(len(read)), config.heads // config.kv_heads

    def heads(name: str, count: int) -> Floats:
        projected: Floats = read @ parts[f"self_attn.{name}_proj"].T
        return projected.reshape(len(read), count, config.head_dim)

    q = norm(heads("q", config.heads), parts["self_attn.q_norm"], config.norm_eps)
    k = norm(heads("k", config.kv_heads), parts["self_attn.k_norm"], config.norm_eps)
    q, k = (rotate(part, positions, config.frequencies) for part in (q, k))
    scores = np.einsum("ihd,jhd->hij", q, k.repeat(group, axis=1)) / np.float32(np.sqrt(config.head_dim))
    scores = np.where(np.tri(len(read), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    values = heads("v", config.kv_heads).repeat(group, axis=1)
    added: Floats = np.einsum("hij,jhd->ihd", shares, values).reshape(len(read), -1)
    return added @ parts["self_attn.o_proj"].T
