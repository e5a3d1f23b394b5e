"""DFlash 2 drafters for tests: random ones.

`python -m tests.dflash2 FOLDER` writes one of the size for SmolLM2-135M, to measure what drafting costs.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.kernels.packing import Embedding
from paceline.models.dflash2_folder import ABOVE, BELOW, CONVOLUTIONS, DFlash2Config, DFlash2Weights
from paceline.models.dflash_folder import HEAD, DFlashConfig
from paceline.trained.dflash2 import NativeDFlash2
from paceline.trained.dflash2_export import export_dflash2
from tests import dflash
from tests.trained import embedding_of, random_tensors


def of(config: DFlashConfig, **more: Any) -> DFlash2Config:
    """A DFlash 2 drafter whose layers are those of a DFlash drafter."""
    own = {field.name: getattr(config, field.name) for field in fields(DFlashConfig)}
    own["draft_vocab_size"] = config.vocab_size
    return DFlash2Config(**(own | {"kernel": 2, "group": 16, "rank": 8, "candidates": 6} | more))


CONFIG = of(dflash.CONFIG)
"""A drafter for `tests.native.models.CONFIG`."""

SMOLLM2 = of(dflash.SMOLLM2, rank=64, candidates=16)
"""A drafter for SmolLM2-135M."""


def random_drafter(config: DFlash2Config = CONFIG, seed: int = 0) -> DFlash2Weights:
    """Random weights, of which the selector's tell tokens apart as much as the head does."""
    codebooks = (ABOVE, BELOW)
    kernels = {name: shape for name, shape in config.shapes.items() if len(shape) == 3}
    others = {name: shape for name, shape in config.shapes.items() if name not in {*codebooks, *kernels}}
    tensors, rng = random_tensors(others, seed), np.random.default_rng(seed)
    for name in tensors:
        if "kernel_projection" in name:
            tensors[name] = tensors[name] / 4  # what slots add to kernels bends them, and no more
    for name, shape in kernels.items():
        tensors[name] = rng.standard_normal(shape, np.float32) / 4
        tensors[name][:, 0] += 1
    for name in codebooks:
        tensors[name] = rng.standard_normal((config.vocab_size, config.rank), np.float32)
    return DFlash2Weights(config, tensors, np.arange(config.vocab_size))


def folder_of(weights: DFlash2Weights, folder: Path, to: str = "vllm") -> Path:
    """The drafter in a folder."""
    return export_dflash2(weights, to, folder, "target").folder


def run(
    weights: DFlash2Weights,
    embedding: Embedding,
    head: Embedding | None = None,
    layers: int = 3,
    **sizes: Any,
) -> NativeDFlash2:
    """The drafter on the kernels, for a target whose head, unless given, are its embeddings."""
    return NativeDFlash2(weights, embedding, head or embedding, layers, **{"cache_tokens": 1 << 14, **sizes})


def random_for(vocab_size: int, seed: int = 0) -> tuple[DFlash2Weights, Embedding]:
    """As `tests.dflash.random_for`."""
    weights, embedding = dflash.random_for(vocab_size, seed)
    return random_drafter(of(weights.config), seed), embedding


def following_drafter(successors: NDArray[np.int64]) -> tuple[DFlash2Weights, Embedding, Embedding]:
    """As `tests.dflash.following_drafter`, with convolutions that change nothing and a selector that adds
    nothing; and the head of the target that it is for."""
    weights, embedding = dflash.following_drafter(successors)
    config = of(weights.config)
    added = {name: np.zeros(shape, np.float32) for name, shape in config.shapes.items()}
    for number in range(config.layers):
        for name in CONVOLUTIONS:
            added[f"layers.{number}.{name}.base_kernel"][:, 0] = 1
    tensors = added | dict(weights.tensors)
    head = embedding_of(tensors.pop(HEAD))
    return DFlash2Weights(config, tensors, weights.token_ids), embedding, head


if __name__ == "__main__":
    print(folder_of(random_drafter(SMOLLM2), Path(sys.argv[1])))
