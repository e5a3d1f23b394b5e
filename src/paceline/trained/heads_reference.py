"""The forward pass of Medusa heads in NumPy: slow, to be read beside the paper.

Source: Cai et al., "Medusa", 2024 (arXiv 2401.10774); the residual blocks of several layers are vLLM's
(vllm/model_executor/models/medusa.py).
"""

from __future__ import annotations

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.heads_folder import HeadsWeights


def forward(weights: HeadsWeights, state: Floats, depth: int) -> Floats:
    """Logits float32 [draft_vocab_size] of one head behind a last hidden state [hidden] of the target, which is
    behind its last norm: for the token `depth` + 1 places behind the one that the state's own logits are for."""
    config, tensors = weights.config, weights.tensors
    x = state
    for layer in range(config.layers):
        name = f"blocks.{depth}.layers.{layer}"
        gate = tensors[name + ".weight"] @ x
        if config.bias:
            gate = gate + tensors[name + ".bias"]
        x = x + gate / (1 + np.exp(-gate))
    logits: Floats = tensors[f"lm_heads.{0 if config.shared else depth}.weight"] @ x
    return logits
