"""A pass over a text and the pads behind it in NumPy: slow, to be read beside the papers.

Sources: Monea et al., "PaSS: Parallel Speculative Sampling", 2023 (arXiv 2311.13581); Chen et al.,
"Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference", 2024 (arXiv
2405.18628).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.kernels.packing import LANES
from paceline.kernels.reference import Model
from paceline.models.drafter_folder import Floats
from paceline.models.pads_folder import PadsWeights
from paceline.targets.weights import PackedWeights


def forward(weights: PadsWeights, target: PackedWeights, text: Sequence[int]) -> Floats:
    """Logits float32 [depths, draft_vocab_size] of the tokens from the second behind a text on: each pad
    stands in place of the token before it, and all see the whole text and the pads before them. In float32
    throughout."""
    depths, vocab = weights.config.depths, weights.config.vocab_size
    count = len(text) + depths
    model = Model(
        target.shape,
        target.tensors,
        windows=target.config.windows,
        frequencies=target.frequencies,
        cache_pages=-(-count // LANES),
        max_positions=count,
        exact_activations=True,
    )
    logits = np.empty((depths, vocab), np.float32)
    nodes = np.arange(count, dtype=np.int32)
    model.forward(
        np.zeros(1, np.int32),
        np.array([0, count], np.int32),
        np.zeros(1, np.int32),
        np.array([*text, *range(vocab, vocab + depths)], np.int32),
        nodes - 1,
        nodes,
        nodes[len(text) :],
        logits,
        [],
        [],
        pads=weights.embeddings,
    )
    return logits[:, weights.token_ids]
