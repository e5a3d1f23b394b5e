"""MTP modules for tests: random ones, and one that knows where a target goes on in closed form.

`python -m tests.mtp FOLDER` writes a random one of the size for SmolLM2-135M, to measure what drafting costs.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.kernels.packing import Embedding
from paceline.models.bfloat16 import narrowed
from paceline.models.drafter_folder import known_tokens
from paceline.models.mtp_folder import MODULE, MtpConfig, MtpWeights, speculators_form
from paceline.trained.export import write_folder
from paceline.trained.mtp import NativeMtp
from tests.toys import state_width
from tests.trained import REAL, TINY, embedding_of, random_ids, random_tensors

CONFIG = MtpConfig(**TINY, target_layers=3)
"""A module for `tests.native.models.CONFIG`."""

SMOLLM2 = replace(CONFIG, **REAL, target_layers=30)
"""A module for SmolLM2-135M."""


def random_drafter(config: MtpConfig = CONFIG, seed: int = 0) -> MtpWeights:
    """Random weights."""
    ids = random_ids(config.vocab_size, config.draft_vocab_size, seed)
    return MtpWeights(config, random_tensors(config.shapes, seed), ids)


def folder_of(weights: MtpWeights, folder: Path) -> Path:
    """The module in a folder, with its reduced vocabulary, as training writes it."""
    config = weights.config
    tensors = {name: narrowed(tensor) for name, tensor in weights.tensors.items()}
    if config.draft_vocab_size < config.vocab_size:
        tensors |= known_tokens(weights.token_ids, config.vocab_size)
    write_folder(folder, speculators_form(config, "target"), tensors)
    return folder


def run(weights: MtpWeights, embedding: Embedding, head: Embedding | None = None, **sizes: Any) -> NativeMtp:
    """The module on the kernels, for a target whose head, unless given, are its embeddings."""
    sizes = {"threads": 1, "cache_tokens": 1 << 14, "max_positions": 1024, **sizes}
    return NativeMtp(weights, embedding, head or embedding, **sizes)


LOUD = 2.0


def following_drafter(successors: NDArray[np.int64]) -> tuple[MtpWeights, Embedding, Embedding]:
    """A module for a target of V + 1 tokens where token x is followed two places further by successors[x],
    int64 [V], and the target's embeddings and head. Its last hidden states are 1 in the place of the token
    and 0 elsewhere.

    The first half of what is fed on says, as the target's states do, which token was read, so the next slot
    knows it; the second half says the successor of the one before, which is what the head looks at.
    """
    vocab = len(successors) + 1
    hidden = state_width(vocab)
    half = hidden // 2
    config = MtpConfig(
        hidden=hidden,
        ffn=32,
        heads=2,
        kv_heads=1,
        head_dim=32,
        norm_eps=1e-6,
        vocab_size=vocab,
        draft_vocab_size=vocab,
        context=512,
        rope_theta=10000.0,
        target_layers=4,
    )
    tensors = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else np.zeros(shape, np.float32)
        for name, shape in config.shapes.items()
    }
    tokens = np.arange(vocab - 1)
    projection = tensors[MODULE + "input_proj.weight"]
    projection[tokens, tokens] = 1  # of the token that is read
    projection[half + successors, hidden + tokens] = 1  # of the state
    head = np.zeros((vocab, hidden), np.float32)
    head[tokens, half + tokens] = LOUD
    table = np.eye(vocab, hidden, dtype=np.float32)
    return MtpWeights(config, tensors, np.arange(vocab)), embedding_of(table), embedding_of(head)


if __name__ == "__main__":
    print(folder_of(random_drafter(SMOLLM2), Path(sys.argv[1])))
