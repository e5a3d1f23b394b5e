"""Heads for tests: random ones, and some that know a Markov chain's law in closed form.

`python -m tests.heads FOLDER` writes random Medusa heads of the size for SmolLM2-135M, to measure what drafting
costs.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.models.heads_folder import HeadsConfig, HeadsWeights
from paceline.models.safetensors_file import write_safetensors
from paceline.trained.heads import NativeHeads
from tests.eagle3 import embedding_of, rounded, state_width

CONFIG = HeadsConfig(
    hidden=96,
    depths=3,
    layers=2,
    vocab_size=203,
    draft_vocab_size=75,  # not a multiple of 16
    bias=True,
    shared=True,
)
"""Heads for `tests.native.models.CONFIG`."""

SMOLLM2 = replace(CONFIG, hidden=576, depths=4, layers=1, vocab_size=49152, draft_vocab_size=8192, bias=False)
"""Heads for SmolLM2-135M."""


def random_heads(config: HeadsConfig = CONFIG, seed: int = 0) -> HeadsWeights:
    """Random weights, rounded as the kernels round theirs, so that both run the same numbers."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: (
            rng.standard_normal(shape).astype(np.float32)
            if len(shape) == 1
            else rounded((rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32))
        )
        for name, shape in config.shapes.items()
    }
    ids = np.sort(rng.permutation(config.vocab_size)[: config.draft_vocab_size])
    return HeadsWeights(config, tensors, ids)


def chain_heads(law: NDArray[np.float64], depths: int = 4) -> HeadsWeights:
    """Heads that know the law of the token so many steps ahead in a Markov chain, float64 [V, V] from each
    token to the next, of a target whose last state is 1 in the place of the token and 0 elsewhere."""
    vocab = len(law)
    config = HeadsConfig(
        hidden=state_width(vocab),
        depths=depths,
        layers=1,
        vocab_size=vocab,
        draft_vocab_size=vocab,
        bias=False,
        shared=False,
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes.items()}
    for depth in range(depths):
        ahead = np.log(np.linalg.matrix_power(law, depth + 2) + 1e-4)
        tensors[f"lm_heads.{depth}.weight"][:, :vocab] = (ahead - ahead.mean(1, keepdims=True)).T
    return HeadsWeights(config, tensors, np.arange(vocab))


def run(weights: HeadsWeights) -> NativeHeads:
    """The heads on the kernels, for a target of their size."""
    shape = weights.config.vocab_size, weights.config.hidden
    return NativeHeads(weights, embedding_of(np.zeros(shape, np.float32)))


def config_of(config: HeadsConfig) -> dict[str, Any]:
    """The config.json that describes them."""
    return {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": config.hidden,
        "num_heads": config.depths,
        "num_hidden_layers": config.layers,
        "vocab_size": config.vocab_size,
        "truncated_vocab_size": config.draft_vocab_size,
        "medusa_fc_bias": config.bias,
        "original_lm_head": config.shared,
    }


def folder_of(weights: HeadsWeights, folder: Path) -> Path:
    """The heads in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(weights.config)))
    tensors = dict(weights.tensors)
    write_safetensors(folder / "model.safetensors", {**tensors, "token_map": weights.token_ids})
    return folder


if __name__ == "__main__":
    print(folder_of(random_heads(SMOLLM2), Path(sys.argv[1])))
