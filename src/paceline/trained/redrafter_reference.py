"""The forward pass of a recurrent drafter in NumPy: slow, to be read beside the paper.

Source: Cheng et al., "Recurrent Drafter for Fast Speculative Decoding in Large Language Models", 2024 (arXiv
2403.09919). The state begins as the target's and each layer adds to it, gated (Shazeer, "GLU Variants Improve
Transformer", 2020, arXiv 2002.05202): an untrained drafter repeats the target's own law.
"""

from __future__ import annotations

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.redrafter_folder import RedrafterWeights
from paceline.trained.heads_reference import unit


def forward(weights: RedrafterWeights, state: Floats, embedded: Floats) -> Floats:
    """Logits float32 [draft_vocab_size] of what follows a path behind a last hidden state [hidden] of the
    target, which is behind its last norm.

    embedded: float32 [k + 1, hidden], the target's embeddings of the path: the token that the target drew
    from the state, and k drafted ones.
    """
    for one in embedded:
        state = step(weights, state, one)
    logits: Floats = weights.tensors["lm_head.weight"] @ state
    return logits


def step(weights: RedrafterWeights, state: Floats, embedded: Floats) -> Floats:
    """The state [hidden] behind one more token, whose embedding is [hidden]."""
    for layer in range(weights.config.layers):
        gate, up, down = (weights.tensors[f"layers.{layer}.{name}.weight"] for name in ("gate", "up", "down"))
        read = unit(state) if layer else np.concatenate([unit(embedded), unit(state)])
        opened = gate @ read
        state = state + down @ (opened / (1 + np.exp(-opened)) * (up @ read))
    return state
