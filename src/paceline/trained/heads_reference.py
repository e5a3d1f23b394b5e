"""The forward pass of Medusa's and Hydra's heads in NumPy: slow, to be read beside the papers.

Sources: Cai et al., "Medusa", 2024 (arXiv 2401.10774); Ankner et al., "Hydra", 2024 (arXiv 2402.05109), for
blocks that read drafted tokens; the residual blocks of several layers are vLLM's
(vllm/model_executor/models/medusa.py).
"""

from __future__ import annotations

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.heads_folder import HeadsWeights


def forward(weights: HeadsWeights, state: Floats, embedded: Floats) -> Floats:
    """Logits float32 [draft_vocab_size] of what follows a path behind a last hidden state [hidden] of the
    target, which is behind its last norm.

    embedded: float32 [k + 1, hidden], the target's embeddings of the path: the token that the target drew
    from the state, and k drafted ones. It is head k that goes on; Medusa's reads the state alone.
    """
    config, tensors = weights.config, weights.tensors
    depth, x = len(embedded) - 1, state
    for layer in range(config.layers):
        read = x
        if layer == 0 and config.kind == "hydra":
            read = np.concatenate([x, unit(embedded).reshape(-1)])
        name = f"blocks.{depth}.layers.{layer}"
        gate = tensors[name + ".weight"] @ read
        if config.bias:
            gate = gate + tensors[name + ".bias"]
        x = x + gate / (1 + np.exp(-gate))
    logits: Floats = tensors[f"lm_heads.{0 if config.shared else depth}.weight"] @ x
    return logits


def unit(embedded: Floats) -> Floats:
    """Embeddings [..., hidden], each divided by its root mean square; one of zeros stays so."""
    squares = np.vecdot(embedded, embedded)[..., None] / np.float32(embedded.shape[-1])
    found: Floats = embedded / np.sqrt(squares + np.float32(1e-12))
    return found
