"""Pads for tests: random ones, and a table that knows what stands behind them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paceline.kernels.packing import Embedding
from paceline.models.pads_folder import PadsConfig, PadsWeights
from paceline.models.safetensors_file import write_safetensors
from paceline.targets.native import NativeTarget
from paceline.trained.pads import NativePads
from tests.toys import PADS, SketchingTable, state_width
from tests.trained import embedding_of, random_ids

CONFIG = PadsConfig(hidden=96, depths=3, vocab_size=203, draft_vocab_size=75)
"""Pads for `tests.native.models.CONFIG`."""

SMOLLM2 = PadsConfig(hidden=576, depths=3, vocab_size=49152, draft_vocab_size=8192)
"""Pads for SmolLM2-135M."""


def random_pads(config: PadsConfig = CONFIG, seed: int = 0) -> PadsWeights:
    """Random embeddings."""
    embeddings = np.random.default_rng(seed).standard_normal((config.depths, config.hidden), np.float32)
    return PadsWeights(config, embeddings, random_ids(config.vocab_size, config.draft_vocab_size, seed))


def pads_for(target: Any) -> NativePads:
    """Pads for a target: of a table they know the law of the token so many steps behind, of another target
    nothing."""
    if isinstance(target, NativeTarget):
        config = replace(CONFIG, vocab_size=target.info.vocab_size, hidden=target.config.hidden)
        return run(random_pads(config), target)
    return run(table_pads(target.info.vocab_size), target)


def table_pads(vocab_size: int) -> PadsWeights:
    """Pads for a `SketchingTable`."""
    config = PadsConfig(
        hidden=state_width(vocab_size), depths=PADS, vocab_size=vocab_size, draft_vocab_size=vocab_size
    )
    return random_pads(config)


def run(weights: PadsWeights, target: SketchingTable | NativeTarget) -> NativePads:
    """The pads on a target."""
    return NativePads(weights, head_of(target), target.look_ahead)


def head_of(target: SketchingTable | NativeTarget) -> Embedding:
    """A target's head; a table's states at pads are logits."""
    if isinstance(target, NativeTarget):
        return target.head()
    vocab_size = target.info.vocab_size
    return embedding_of(np.eye(vocab_size, state_width(vocab_size), dtype=np.float32))


def folder_of(weights: PadsWeights, folder: Path) -> Path:
    """The pads in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(weights.config.described))
    write_safetensors(folder / "model.safetensors", tensors_of(weights))
    return folder


def tensors_of(weights: PadsWeights) -> dict[str, Any]:
    """As a folder holds them."""
    named = {f"embeddings.{place}": row for place, row in enumerate(weights.embeddings)}
    return {**named, "token_map": weights.token_ids}
