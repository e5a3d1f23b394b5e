"""What trained exits make of the target's inner hidden states, in NumPy.

Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023 (arXiv
2303.08112); here without a bias, and with a last norm of each exit's own.
"""

from __future__ import annotations

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.exit_folder import ExitWeights


def readout(weights: ExitWeights, exit: int, states: Floats, head: Floats) -> Floats:
    """Logits float32 [n, V] of the hidden states [n, H] behind so many layers of the target. head: the
    target's rows, [V, H]."""
    x = states + states @ weights.tensors[f"exits.{exit}.weight"].T
    mean = (x * x).mean(-1, keepdims=True, dtype=np.float32)
    normed = x / np.sqrt(mean + np.float32(weights.config.norm_eps))
    logits: Floats = (normed * weights.tensors[f"exits.{exit}.norm.weight"]) @ head.T
    return logits
