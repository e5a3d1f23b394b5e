"""Trained draft models for vLLM: a folder that it loads, read back and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.errors import ConfigError, ModelFileError
from paceline.models.bfloat16 import narrowed
from paceline.models.llama_folder import LlamaWeights, described, read_llama
from paceline.trained.export import TOLERANCE, Exported, command_for, write_folder
from paceline.trained.llama_reference import forward

DRAFT_TOKENS = 4
"""Along one path, in the command."""


def export_draft(weights: LlamaWeights, to: str, folder: Path, target: str) -> Exported:
    """Write a draft model for an engine, one of `paceline.trained.export.ENGINES`, read it back and compare.

    target: the model that the engine serves with it, which its folder does not say. Raises ConfigError;
    ModelFileError if the folder cannot be written, or reads back as another model.
    """
    if to != "vllm":
        raise ConfigError(f"draft models are written for vllm, not for {to}")
    if not target:
        raise ConfigError("a draft model does not say which target it was trained for: name it with --target")
    config = described(weights.config)
    write_folder(folder, config, {name: narrowed(tensor) for name, tensor in weights.tensors.items()})
    again = read_llama(folder)
    difference = compare(weights, again)
    if described(again.config) != config or not difference <= TOLERANCE:
        raise ModelFileError(f"{folder} reads back as another model: logits differ by {difference:.2g}")
    command = command_for(to, "draft_model", target, folder, DRAFT_TOKENS)
    return Exported(folder, config, command, difference)


def compare(one: LlamaWeights, other: LlamaWeights) -> float:
    """The largest difference between their logits, by the reference, over a random text."""
    text = np.random.default_rng(0).integers(one.config.vocab_size, size=8).tolist()
    return float(np.abs(forward(one, text) - forward(other, text)).max())
