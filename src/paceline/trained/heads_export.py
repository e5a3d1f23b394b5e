"""Trained Medusa heads for vLLM: a folder that it loads, read back and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.errors import ConfigError, ModelFileError
from paceline.models.bfloat16 import narrowed
from paceline.models.heads_folder import HeadsWeights, read_heads
from paceline.trained.export import TOLERANCE, Exported, command_for, write_folder
from paceline.trained.heads_reference import forward


def export_heads(weights: HeadsWeights, to: str, folder: Path, target: str) -> Exported:
    """Write heads for an engine, one of `paceline.trained.export.ENGINES`, read them back and compare.

    target: the model that the engine serves with them, which their folders do not say. Raises ConfigError;
    ModelFileError if the folder cannot be written, or reads back as other heads.
    """
    config = weights.config
    if (config.kind, to) != ("medusa", "vllm"):
        raise ConfigError(
            f"{to} does not load {config.kind} heads; of all heads only medusa's are loaded, by vllm"
        )
    if not target:
        raise ConfigError("heads do not say which target they were trained for: name it with --target")
    tensors = {name: narrowed(tensor) for name, tensor in weights.tensors.items()}
    write_folder(folder, config.described, {**tensors, "token_map": weights.token_ids})
    again = read_heads(folder, config.kind)
    difference = compare(weights, again)
    same = again.config == config and np.array_equal(again.token_ids, weights.token_ids)
    if not same or not difference <= TOLERANCE:
        raise ModelFileError(f"{folder} reads back as other heads: logits differ by {difference:.2g}")
    command = command_for(to, config.kind, target, folder, config.depths)
    return Exported(folder, config.described, command, difference)


def compare(one: HeadsWeights, other: HeadsWeights) -> float:
    """The largest difference between their logits, by the reference, behind random states and paths of all
    lengths."""
    config, rng = one.config, np.random.default_rng(0)
    differences = []
    for depth in range(config.depths):
        state = rng.standard_normal(config.hidden, np.float32)
        embedded = rng.standard_normal((depth + 1, config.hidden), np.float32)
        left, right = (forward(weights, state, embedded) for weights in (one, other))
        differences.append(float(np.abs(left - right).max()))
    return max(differences)
