"""DFlash drafters for tests: random ones, and one that knows where a target goes on in closed form.

`python -m tests.dflash FOLDER` writes a random one of the size for SmolLM2-135M, to measure what drafting
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
from paceline.models.dflash_folder import HEAD, DFlashConfig, DFlashWeights
from paceline.trained.dflash import NativeDFlash
from paceline.trained.dflash_export import export_dflash
from tests.toys import state_width
from tests.trained import REAL, TINY, embedding_of, random_ids, random_tensors

CONFIG = DFlashConfig(**TINY, layers=2, layer_ids=(1, 2, 3), block=5, mask_token=202)
"""A drafter for `tests.native.models.CONFIG`."""

SMOLLM2 = replace(CONFIG, **REAL, layers=1, layer_ids=(2, 15, 27), block=6, mask_token=0)
"""A drafter for SmolLM2-135M."""


def random_drafter(config: DFlashConfig = CONFIG, seed: int = 0, *, head: bool = True) -> DFlashWeights:
    """Random weights; head: it has its own."""
    own = {HEAD: (config.draft_vocab_size, config.hidden)} if head else {}
    ids = random_ids(config.vocab_size, config.draft_vocab_size, seed)
    return DFlashWeights(config, random_tensors(config.shapes | own, seed), ids)


def folder_of(weights: DFlashWeights, folder: Path, to: str = "vllm") -> Path:
    """The drafter in a folder."""
    return export_dflash(weights, to, folder, "target").folder


def run(
    weights: DFlashWeights, embedding: Embedding, head: Embedding | None = None, layers: int = 3, **sizes: Any
) -> NativeDFlash:
    """The drafter on the kernels, for a target whose head, unless given, are its embeddings."""
    return NativeDFlash(weights, embedding, head or embedding, layers, **{"cache_tokens": 1 << 14, **sizes})


def random_for(vocab_size: int, seed: int = 0) -> tuple[DFlashWeights, Embedding]:
    """One that knows nothing, and the embeddings that it is for: of a target whose hidden states are those of
    `tests.toys.SketchingTable`."""
    config = replace(
        CONFIG,
        hidden=state_width(vocab_size),
        vocab_size=vocab_size,
        draft_vocab_size=vocab_size,
        mask_token=0,
    )
    embeddings = np.random.default_rng(seed).standard_normal((vocab_size, config.hidden), np.float32)
    return random_drafter(config, seed), embedding_of(embeddings)


DEPTHS, STEEP = 4, 3.0


def following_drafter(
    successors: NDArray[np.int64], *, from_anchor: bool = False
) -> tuple[DFlashWeights, Embedding]:
    """A drafter for a target of V + 1 tokens, the last of them the mask token, where token x is followed two
    places further by successors[x], int64 [V]; and the embeddings that it is for. The target's hidden states,
    all alike, are 1 in the place of the token and 0 elsewhere.

    Head m looks 2 m + 2 places back, which is its queries' rotation, and says the m + 1-th successor of what
    it finds there. From masks 1 and 3 that leads into the text, to the hidden states of its last token but
    one known; from masks 2 and 4 to the block's first token. The nearest heads say it loudest.

    from_anchor: each slot of a block that is one shorter says the token behind its own place, so each head
    looks one place less far back.
    """
    vocab, heads = len(successors) + 1, DEPTHS // 2
    hidden = dim = state_width(vocab)
    config = DFlashConfig(
        hidden=hidden,
        layers=1,
        ffn=32,
        heads=heads,
        kv_heads=heads,
        head_dim=dim,
        norm_eps=1e-6,
        vocab_size=vocab,
        draft_vocab_size=vocab,
        context=512,
        layer_ids=(1, 2, 3),
        block=DEPTHS + (not from_anchor),
        mask_token=vocab - 1,
        rope_theta=10.0,  # so that neighbouring positions are far apart
    )
    tensors = {
        name: np.zeros(shape, np.float32) if len(shape) > 1 else np.ones(shape, np.float32)
        for name, shape in {**config.shapes, HEAD: (vocab, hidden)}.items()
    }
    tokens, constant = np.arange(vocab - 1), hidden - 1
    embeddings = np.zeros((vocab, hidden), np.float32)
    embeddings[tokens, tokens] = embeddings[:, constant] = 1
    tensors["fc.weight"][:vocab, :vocab] = np.eye(vocab)
    tensors["fc.weight"][constant, :vocab] = 1
    for name in "qk":
        tensors[f"layers.0.self_attn.{name}_norm.weight"][:] = STEEP
    angles = config.frequencies * (2 * (np.arange(heads)[:, None] + 1) - from_anchor)
    q, k, v = (
        tensors[f"layers.0.self_attn.{name}_proj.weight"].reshape(heads, dim, hidden) for name in "qkv"
    )
    q[:, :, constant] = np.concatenate([np.cos(angles), -np.sin(angles)], axis=-1)
    k[:, : dim // 2, constant] = 1
    reached = tokens
    for head in range(heads):
        reached = successors[reached]
        v[head, reached, tokens] = 0.25 / 1.5**head  # 4 is what 1 is behind the norms
        # Apart from the embedding of the block's first token.
        said = tensors["layers.0.self_attn.o_proj.weight"].reshape(hidden, heads, dim)[:, head]
        said[vocab + tokens, tokens] = 1
    tensors[HEAD][tokens, vocab + tokens] = 1.25
    return DFlashWeights(config, tensors, np.arange(vocab)), embedding_of(embeddings)


if __name__ == "__main__":
    print(folder_of(random_drafter(SMOLLM2), Path(sys.argv[1])))
