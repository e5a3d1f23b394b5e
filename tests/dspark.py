"""DSpark drafters for tests: random ones, and one that knows where a target goes on in closed form."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.kernels.packing import Embedding
from paceline.models.dflash_folder import HEAD, DFlashConfig
from paceline.models.dspark_folder import (
    CONFIDENCE,
    CONFIDENCE_BIAS,
    MARKOV_IN,
    MARKOV_OUT,
    DSparkConfig,
    DSparkWeights,
)
from paceline.trained.dspark import NativeDSpark
from paceline.trained.dspark_export import export_dspark
from tests import dflash
from tests.trained import random_ids, random_tensors


def of(config: DFlashConfig, **more: Any) -> DSparkConfig:
    """A DSpark drafter whose layers are those of a DFlash drafter."""
    own = {field.name: getattr(config, field.name) for field in fields(DFlashConfig)}
    heads = {"rank": 32, "from_anchor": True, "confidence": True, "confidence_tokens": True}
    return DSparkConfig(**(own | heads | more))


CONFIG = of(dflash.CONFIG, block=4)
"""A drafter for `tests.native.models.CONFIG`."""

SMOLLM2 = of(dflash.SMOLLM2, block=5, rank=64)
"""A drafter for SmolLM2-135M."""


def random_drafter(config: DSparkConfig = CONFIG, seed: int = 0, *, head: bool = True) -> DSparkWeights:
    """Random weights; head: it has its own."""
    own = {HEAD: (config.draft_vocab_size, config.hidden)} if head else {}
    ids = random_ids(config.vocab_size, config.draft_vocab_size, seed)
    tensors = random_tensors(config.shapes | own, seed)
    if config.confidence:
        tensors[CONFIDENCE_BIAS] -= 1
    return DSparkWeights(config, tensors, ids)


def folder_of(weights: DSparkWeights, folder: Path) -> Path:
    """The drafter in a folder."""
    return export_dspark(weights, "vllm", folder, "target").folder


def run(
    weights: DSparkWeights, embedding: Embedding, head: Embedding | None = None, layers: int = 3, **sizes: Any
) -> NativeDSpark:
    """The drafter on the kernels, for a target whose head, unless given, are its embeddings."""
    return NativeDSpark(weights, embedding, head or embedding, layers, **{"cache_tokens": 1 << 14, **sizes})


def random_for(vocab_size: int, seed: int = 0) -> tuple[DSparkWeights, Embedding]:
    """As `tests.dflash.random_for`."""
    weights, embedding = dflash.random_for(vocab_size, seed)
    return random_drafter(of(weights.config, block=4), seed), embedding


def following_drafter(
    successors: NDArray[np.int64], bends: NDArray[np.float32]
) -> tuple[DSparkWeights, Embedding]:
    """As `tests.dflash.following_drafter`, for a target where token x adds bends[x], float32 [V + 1, V + 1],
    to the logits of the token behind it. Without doubts: its confidences are nearly 1."""
    weights, embedding = dflash.following_drafter(successors, from_anchor=True)
    config = of(weights.config)
    tensors = dict(weights.tensors)
    for name in (MARKOV_IN, MARKOV_OUT, CONFIDENCE, CONFIDENCE_BIAS):
        tensors[name] = np.zeros(config.shapes[name], np.float32)
    tokens = np.arange(config.vocab_size)
    tensors[MARKOV_IN][tokens, tokens] = 1
    tensors[MARKOV_OUT][:, : config.vocab_size] = bends.T
    tensors[CONFIDENCE_BIAS][:] = 9
    return DSparkWeights(config, tensors, weights.token_ids), embedding


def doubtful(weights: DSparkWeights, token: int) -> DSparkWeights:
    """One that expects nothing of what is drafted right behind a token."""
    proj = weights.tensors[CONFIDENCE].copy()
    proj[0, weights.config.hidden + token] = -18
    return replace(weights, tensors={**weights.tensors, CONFIDENCE: proj})


if __name__ == "__main__":
    print(folder_of(random_drafter(SMOLLM2), Path(sys.argv[1])))
