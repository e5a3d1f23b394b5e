"""Trained exits for tests: random ones, and some that know how a token bends the law behind it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline.kernels.packing import Embedding
from paceline.models.exit_folder import ExitConfig, ExitWeights
from paceline.models.safetensors_file import write_safetensors
from paceline.trained.exits import NativeExits
from tests.toys import state_width
from tests.trained import embedding_of, random_tensors

CONFIG = ExitConfig(exits=(1, 2), hidden=96, layers=3, vocab_size=203, norm_eps=1e-5)
"""Exits for `tests.native.models.CONFIG`."""


def random_exits(config: ExitConfig = CONFIG, seed: int = 0) -> ExitWeights:
    """Random weights."""
    return ExitWeights(config, random_tensors(config.shapes, seed))


def table_exits(table: NDArray[np.float64]) -> NativeExits:
    """Exits behind 1 and 3 of the 4 layers of a `tests.toys.SketchingTable` with these logits [V, V, V],
    whose states are 1 in the place of the token and 0 elsewhere: they know what it says of the next one."""
    vocab = len(table)
    hidden = state_width(vocab)
    config = ExitConfig(exits=(1, 3), hidden=hidden, layers=4, vocab_size=vocab, norm_eps=1e-6)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes.items()}
    for exit in config.exits:
        tensors[f"exits.{exit}.norm.weight"] += 1
    rows = np.zeros((vocab, hidden), np.float32)
    rows[:, :vocab] = table.mean(0).T / np.sqrt(hidden)
    return NativeExits(ExitWeights(config, tensors), embedding_of(rows), 4)


def run(weights: ExitWeights, head: Embedding) -> NativeExits:
    """The exits on the kernels, for a target with this head."""
    return NativeExits(weights, head, weights.config.layers)


def folder_of(weights: ExitWeights, folder: Path) -> Path:
    """The exits in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(weights.config.described))
    write_safetensors(folder / "model.safetensors", dict(weights.tensors))
    return folder
