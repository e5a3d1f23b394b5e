"""EAGLE-3 drafters for tests: random ones, and one that knows a table's law in closed form.

`python -m tests.eagle3 FOLDER` writes a random one of the size for SmolLM2-135M, to measure what drafting
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
from paceline.models.eagle3_folder import Eagle3Config, Eagle3Weights
from paceline.trained.eagle3 import NativeEagle3
from paceline.trained.eagle3_export import export_eagle3
from tests.toys import state_width
from tests.trained import REAL, TINY, random_ids, random_tensors

CONFIG = Eagle3Config(
    **TINY,
    target_hidden=96,
    layer_ids=(0, 2, 3),
    norm_before_residual=False,
    norm_before_fc=False,
    fc_norm=False,
    norm_output=False,
)
"""A drafter for `tests.native.models.CONFIG`."""

SMOLLM2 = replace(CONFIG, **REAL, target_hidden=576, layer_ids=(2, 15, 27))
"""A drafter for SmolLM2-135M."""


def random_drafter(
    config: Eagle3Config = CONFIG, seed: int = 0, *, embeddings: bool = False
) -> Eagle3Weights:
    """Random weights; embeddings: it has its own."""
    own = {"embed_tokens.weight": (config.vocab_size, config.hidden)} if embeddings else {}
    ids = random_ids(config.vocab_size, config.draft_vocab_size, seed)
    return Eagle3Weights(config, random_tensors(config.shapes | own, seed), ids)


def folder_of(weights: Eagle3Weights, folder: Path, to: str = "vllm") -> Path:
    """The drafter in a folder."""
    return export_eagle3(weights, to, folder, "target").folder


def run(
    weights: Eagle3Weights, embedding: Embedding, layers: int, threads: int = 1, **sizes: Any
) -> NativeEagle3:
    """The drafter on the kernels."""
    sizes = {"cache_tokens": 1 << 14, "max_positions": 1024, **sizes}
    return NativeEagle3(weights, embedding, layers, threads=threads, **sizes)


SMALL, STEEP = 0.01, 8.0
"""What logits are multiplied by inside the closed form, so that they hardly change a feature's length; and
how much attention prefers a slot itself to its neighbours."""


def additive_drafter(before: NDArray[np.float64], last: NDArray[np.float64]) -> Eagle3Weights:
    """A drafter that knows the law exactly whose logits are before[x[t]] + last[x[t+1]], float64 [V, V] each,
    of a target whose hidden states, all alike, are 1 in the place of the token and 0 elsewhere.

    A feature has the logits that were last said in its first half, and which token was last read in its
    second. Each slot attends to itself alone, takes away the feature that it was given, and puts its own
    there: so the hidden states must come from the right position, and its own output must be fed on to the
    right slot.
    """
    vocab = len(before)
    width = state_width(vocab)
    hidden = 2 * width
    config = Eagle3Config(
        hidden=hidden,
        ffn=32,
        heads=2,
        kv_heads=2,
        head_dim=width,
        norm_eps=1e-6,
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
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes.items()}
    for tensor in tensors.values():
        if tensor.ndim == 1:
            tensor[:] = 1
    tokens = np.arange(vocab)
    embeddings = np.zeros((vocab, hidden), np.float32)
    embeddings[tokens, tokens] = embeddings[:, width] = 1
    token = constant = np.sqrt(hidden / 2)  # what is there behind the norm of an embedding
    feature = np.sqrt(hidden)  # what 1 is behind the norm of a feature, which is about 1 long
    said, read = hidden + np.arange(vocab), hidden + width + np.arange(vocab)  # columns of a feature's halves
    for name in ("q", "k"):
        weight = tensors[f"layers.0.self_attn.{name}_proj.weight"].reshape(2, 2, width // 2, -1)
        weight[:, 0, :, width] = np.sqrt(STEEP * np.sqrt(width)) / constant
    value = tensors["layers.0.self_attn.v_proj.weight"]
    value[tokens, :vocab] = SMALL * last.T / token
    value[tokens[:, None], read] = SMALL * before.T / feature
    value[tokens, said] = -1 / feature
    value[width + tokens, tokens] = 1 / token
    value[width + tokens, read] = -1 / feature
    tensors["layers.0.self_attn.o_proj.weight"][:] = np.eye(hidden)
    tensors["fc.weight"][width:, :width] = np.eye(width)
    tensors["lm_head.weight"][tokens, tokens] = 1 / (SMALL * feature)
    return Eagle3Weights(config, {**tensors, "embed_tokens.weight": embeddings}, tokens)


if __name__ == "__main__":
    print(folder_of(random_drafter(SMOLLM2), Path(sys.argv[1])))
