"""Heads for tests: random ones, and some that know a Markov chain's law in closed form.

`python -m tests.heads KIND FOLDER` writes random heads of the size for SmolLM2-135M, to measure what drafting
costs.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.models.heads_folder import HeadsConfig, HeadsWeights
from paceline.models.safetensors_file import write_safetensors
from paceline.trained.heads import NativeHeads
from tests.toys import state_width
from tests.trained import embedding_of, random_ids, random_tensors

CONFIG = HeadsConfig(
    kind="medusa",
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
    """Random weights."""
    ids = random_ids(config.vocab_size, config.draft_vocab_size, seed)
    return HeadsWeights(config, random_tensors(config.shapes, seed, positive=False), ids)


def chain_heads(law: NDArray[np.float64], depths: int = 4) -> HeadsWeights:
    """Heads that know the law of the token so many steps ahead in a Markov chain, float64 [V, V] from each
    token to the next, of a target whose last state is 1 in the place of the token and 0 elsewhere."""
    vocab = len(law)
    config = HeadsConfig(
        kind="medusa",
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


def reading_heads(law: NDArray[np.float64], depths: int = 4) -> HeadsWeights:
    """Hydra's heads that know the law of the next token behind each path exactly, of such a chain and such a
    target, whose embeddings are 1 in the place of the token, too.

    Each block marks the last token of its path, so strongly that the state beside the mark hardly counts.
    """
    vocab = len(law)
    config = HeadsConfig(
        kind="hydra",
        hidden=state_width(vocab),
        depths=depths,
        layers=1,
        vocab_size=vocab,
        draft_vocab_size=vocab,
        bias=False,
        shared=True,
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes.items()}
    tokens = np.arange(vocab)
    for depth in range(depths):
        last = (depth + 1) * config.hidden
        tensors[f"blocks.{depth}.layers.0.weight"][tokens, last + tokens] = STRONG / np.sqrt(config.hidden)
    ahead = np.log(law + 1e-4)
    tensors["lm_heads.0.weight"][:, :vocab] = (ahead - ahead.mean(1, keepdims=True)).T / STRONG
    return HeadsWeights(config, tensors, tokens)


STRONG = 100.0


def run(weights: HeadsWeights) -> NativeHeads:
    """The heads on the kernels, for a target of their size."""
    return NativeHeads(weights, embedding_of(embeddings(weights.config)))


class Sizes(Protocol):
    """Of a drafter."""

    @property
    def hidden(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


def embeddings(config: Sizes) -> NDArray[np.float32]:
    """1 in the place of the token, and beyond the width anything."""
    rest = np.random.default_rng(3).standard_normal((config.vocab_size, config.hidden), np.float32)
    rest[: config.hidden] = np.eye(config.vocab_size, config.hidden, dtype=np.float32)[: config.hidden]
    return rest


def folder_of(weights: HeadsWeights, folder: Path) -> Path:
    """The heads in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(weights.config.described))
    tensors = dict(weights.tensors)
    write_safetensors(folder / "model.safetensors", {**tensors, "token_map": weights.token_ids})
    return folder


if __name__ == "__main__":
    print(folder_of(random_heads(replace(SMOLLM2, kind=sys.argv[1])), Path(sys.argv[2])))
