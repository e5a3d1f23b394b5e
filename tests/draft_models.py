"""Draft models for tests: random ones, and their folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from paceline.models.config import ModelConfig
from paceline.models.llama_folder import LlamaWeights, described, llama_config, shapes
from paceline.models.safetensors_file import write_safetensors
from tests.trained import random_tensors

CONFIG = llama_config(
    name="tiny draft",
    hidden=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=96,
    vocab_size=203,
    context=512,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)
"""For `tests.native.models.CONFIG`."""


def random_model(config: ModelConfig = CONFIG, seed: int = 0) -> LlamaWeights:
    """Random weights."""
    return LlamaWeights(config, random_tensors(shapes(config), seed))


def folder_of(weights: LlamaWeights, folder: Path) -> Path:
    """The model in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described(weights.config)))
    write_safetensors(
        folder / "model.safetensors", {name: np.array(part) for name, part in weights.tensors.items()}
    )
    return folder
