"""Recurrent drafters for tests: random ones, and one that knows a Markov chain's law in closed form.

`python -m tests.redrafter FOLDER` writes a random one of the size for SmolLM2-135M, to measure what drafting
costs.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline.models.redrafter_folder import RedrafterConfig, RedrafterWeights
from paceline.models.safetensors_file import write_safetensors
from paceline.trained.redrafter import NativeRedrafter
from tests.heads import embeddings
from tests.toys import state_width
from tests.trained import embedding_of, random_ids, random_tensors, rounded

CONFIG = RedrafterConfig(hidden=96, inner=64, layers=2, depths=3, vocab_size=203, draft_vocab_size=75)
"""A drafter for `tests.native.models.CONFIG`."""

SMOLLM2 = replace(CONFIG, hidden=576, inner=1536, layers=1, depths=4, vocab_size=49152, draft_vocab_size=8192)
"""One for SmolLM2-135M."""


def random_drafter(config: RedrafterConfig = CONFIG, seed: int = 0) -> RedrafterWeights:
    """Random weights, rounded as the kernels round theirs."""
    ids = random_ids(config.vocab_size, config.draft_vocab_size, seed)
    tensors = random_tensors(config.shapes, seed)
    layers = {name: rounded(tensor, "Q4_1") for name, tensor in tensors.items() if name != "lm_head.weight"}
    return RedrafterWeights(config, {**tensors, **layers}, ids)


def chain_drafter(law: NDArray[np.float64]) -> RedrafterWeights:
    """A drafter that knows the law of the next token behind each path, float64 [V, V] from each token to the
    next, of a target whose last state is 1 in the place of the token and 0 elsewhere, and whose embeddings
    are too.

    Its state becomes 1 in the place of the last token of the path, and 0 again in that of the one before.
    """
    vocab = len(law)
    width = state_width(vocab)
    config = RedrafterConfig(
        hidden=width, inner=2 * width, layers=1, depths=4, vocab_size=vocab, draft_vocab_size=vocab
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes.items()}
    tokens, one, large = np.arange(vocab), float(np.sqrt(width)), 20.0  # one: what 1 is behind `unit`
    gate, up, down = (tensors[f"layers.0.{name}.weight"] for name in ("gate", "up", "down"))
    for first, reads, sign in ((0, 0, 1.0), (width, width, -1.0)):
        gate[first + tokens, reads + tokens] = large / one  # SiLU leaves it as it is
        up[first + tokens, reads + tokens] = 1 / (large * one)
        down[tokens, first + tokens] = sign
    ahead = np.log(law + 1e-4)
    tensors["lm_head.weight"][:, :vocab] = (ahead - ahead.mean(1, keepdims=True)).T
    return RedrafterWeights(config, tensors, tokens)


def run(weights: RedrafterWeights) -> NativeRedrafter:
    """The drafter on the kernels, for a target of its size."""
    return NativeRedrafter(weights, embedding_of(embeddings(weights.config)))


def folder_of(weights: RedrafterWeights, folder: Path) -> Path:
    """The drafter in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(weights.config.described))
    write_safetensors(folder / "model.safetensors", {**weights.tensors, "token_map": weights.token_ids})
    return folder


if __name__ == "__main__":
    print(folder_of(random_drafter(SMOLLM2), Path(sys.argv[1])))
