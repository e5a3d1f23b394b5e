"""The forward pass of a P-EAGLE drafter in NumPy: slow, without a cache, to be read beside the paper.

The slots of a text are EAGLE-3's. Behind the last of them stand further ones, one for each drafted token but
the first, which read the embedding of a mask token and, in place of the target's hidden states, vectors that
were learnt; every slot attends to those up to its own. So one pass says what each of the next tokens may be,
without knowing those between.

Source: "P-EAGLE: Parallel-Drafting EAGLE with Scalable Training", 2026 (arXiv 2602.01469).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.eagle3_folder import MASK_HIDDEN, Eagle3Weights
from paceline.trained.eagle3_reference import forward, fuse


def mask_states(weights: Eagle3Weights) -> list[Floats]:
    """What stands in place of each of the target's hidden states, float32 [1, target_hidden]."""
    states = weights.tensors[MASK_HIDDEN].reshape(-1, 1, weights.config.target_hidden)
    return list(np.ascontiguousarray(states))


def draft(weights: Eagle3Weights, embedding: Floats, tokens: Sequence[int], features: Floats) -> Floats:
    """Logits float32 [draft_tokens, draft_vocab_size] of the tokens behind a text.

    embedding: float32 [vocab_size, hidden]; tokens: the text x[0] to x[N], at least two; features: float32
    [N, hidden], of `fuse`, of its positions but the last.
    """
    depths, mask = weights.config.draft_tokens, weights.config.mask_token
    assert mask is not None
    masked = np.repeat(fuse(weights, mask_states(weights)), depths - 1, axis=0)
    read = [*tokens[1:], *[mask] * (depths - 1)]
    logits, _ = forward(weights, embedding[read], np.concatenate([features, masked]))
    return logits[-depths:]
