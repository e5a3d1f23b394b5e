"""P-EAGLE drafters for tests: random ones, and one that knows where a target goes on in closed form.

`python -m tests.peagle FOLDER` writes a random one of the size for SmolLM2-135M, to measure what drafting
costs.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.kernels.packing import Embedding
from paceline.models.eagle3_folder import MASK_HIDDEN, Eagle3Config, Eagle3Weights
from paceline.trained.peagle import NativePEagle
from tests import eagle3
from tests.toys import state_width

CONFIG = replace(eagle3.CONFIG, layers=2, mask_token=202, draft_tokens=4)
"""A drafter for `tests.native.models.CONFIG`."""

SMOLLM2 = replace(eagle3.SMOLLM2, mask_token=0, draft_tokens=5)
"""A drafter for SmolLM2-135M."""

folder_of = eagle3.folder_of


def random_drafter(
    config: Eagle3Config = CONFIG, seed: int = 0, *, embeddings: bool = False
) -> Eagle3Weights:
    """Random weights; embeddings: it has its own."""
    weights = eagle3.random_drafter(config, seed, embeddings=embeddings)
    hidden = weights.tensors[MASK_HIDDEN]
    drawn = np.random.default_rng(seed).standard_normal(hidden.shape, np.float32)
    return replace(weights, tensors={**weights.tensors, MASK_HIDDEN: drawn})


def run(weights: Eagle3Weights, embedding: Embedding, layers: int, **sizes: Any) -> NativePEagle:
    """The drafter on the kernels."""
    sizes = {"cache_tokens": 1 << 14, "max_positions": 1024, "threads": 1, **sizes}
    return NativePEagle(weights, embedding, layers, **sizes)


DEPTHS = 4


def following_drafter(successors: NDArray[np.int64]) -> Eagle3Weights:
    """A drafter for a target of V + 1 tokens, the last of them the mask token, where token x is followed two
    places further by successors[x], int64 [V]. The target's hidden states, all alike, are 1 in the place of
    the token and 0 elsewhere.

    Head j looks j places back, which is its queries' rotation. From the slot of depth j that is the last slot
    of the text, which read the last two tokens: the head says what follows one of them j + 1 places behind
    the text. Mask slots have nothing to say, and heads that look further than the text's end are not as loud.
    """
    vocab = len(successors) + 1
    width = state_width(vocab)
    config = Eagle3Config(
        hidden=width,
        ffn=32,
        heads=DEPTHS,
        kv_heads=DEPTHS,
        head_dim=width,
        norm_eps=1e-9,
        vocab_size=vocab,
        draft_vocab_size=vocab,
        context=512,
        target_hidden=width,
        layer_ids=(1, 2, 3),
        rope_theta=10.0,  # so that neighbouring slots are far apart
        norm_before_residual=False,
        norm_before_fc=False,
        fc_norm=False,
        norm_output=False,
        draft_tokens=DEPTHS,
        mask_token=vocab - 1,
    )
    tensors = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else np.zeros(shape, np.float32)
        for name, shape in config.shapes.items()
    }
    tokens, constant = np.arange(vocab - 1), width - 1
    embeddings = np.zeros((vocab, width), np.float32)
    embeddings[np.arange(vocab), np.arange(vocab)] = embeddings[:, constant] = 1
    token, feature = np.sqrt(width / 2), np.sqrt(width)  # what 1 is behind their norms
    tensors["fc.weight"][:, :width] = 0.01 * np.eye(width)  # the last norm hardly sees it
    angles = config.frequencies * np.arange(DEPTHS)[:, None]
    q, k, v = (
        tensors[f"layers.0.self_attn.{name}_proj.weight"].reshape(DEPTHS, width, 2 * width) for name in "qkv"
    )
    q[:, :, constant] = np.concatenate([np.cos(angles), -np.sin(angles)], axis=-1)
    k[:, : width // 2, constant] = 1
    reached = tokens
    for depth in range(DEPTHS):
        loud = 3.0**-depth
        if depth % 2:
            v[depth, reached, tokens] = loud / token
        else:
            reached = successors[reached]
            v[depth, reached, width + tokens] = loud / feature
        tensors["layers.0.self_attn.o_proj.weight"].reshape(width, DEPTHS, width)[:, depth] = np.eye(width)
    tensors["lm_head.weight"][tokens, tokens] = 1.25
    return Eagle3Weights(config, {**tensors, "embed_tokens.weight": embeddings}, np.arange(vocab))


if __name__ == "__main__":
    print(folder_of(random_drafter(SMOLLM2), Path(sys.argv[1])))
