"""Trained DFlash 2 drafters for other engines: folders that vLLM and SGLang load, read back and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.errors import ConfigError, ModelFileError
from paceline.models.bfloat16 import narrowed
from paceline.models.dflash2_folder import DFlash2Weights, described, read_dflash2
from paceline.models.dflash_folder import HEAD
from paceline.trained.dflash2_reference import follow
from paceline.trained.dflash_reference import inject
from paceline.trained.export import TOLERANCE, Exported, command_for, write_folder


def export_dflash2(weights: DFlash2Weights, to: str, folder: Path, target: str) -> Exported:
    """Write a drafter for an engine, one of `paceline.trained.export.ENGINES`, read it back and compare.

    target: the model that the engine serves with it. Raises ConfigError; ModelFileError if the folder cannot
    be written, or reads back as another drafter.
    """
    config = weights.config
    if not target:
        raise ConfigError("the drafter does not say which target it was trained for: name it with --target")
    if HEAD in weights.tensors:
        raise ConfigError("the drafter has a head of its own, and the form of DFlash 2 has none")
    if 0 in config.layer_ids:
        raise ConfigError(
            "the drafter reads the target's embeddings, which engines do not hand to such drafters; train it "
            "on data with other --taps"
        )
    written = described(config)
    write_folder(folder, written, {name: narrowed(tensor) for name, tensor in weights.tensors.items()})
    again = read_dflash2(folder)
    difference = compare(weights, again)
    same = again.config.layer_ids == config.layer_ids and again.config.mask_token == config.mask_token
    if not same or not difference <= TOLERANCE:
        raise ModelFileError(f"{folder} reads back as another drafter: logits differ by {difference:.2g}")
    return Exported(folder, written, command_for(to, "dflash", target, folder, config.depths), difference)


def compare(one: DFlash2Weights, other: DFlash2Weights) -> float:
    """The largest difference between their logits, by the reference, along a random path behind a random text
    with random hidden states; infinite where their blocks or candidates are not alike."""
    config, rng = one.config, np.random.default_rng(0)
    if (config.block, config.hidden) != (other.config.block, other.config.hidden):
        return float("inf")
    states = list(rng.standard_normal((len(config.layer_ids), 8, config.hidden), np.float32))
    embedded = rng.standard_normal((config.block, config.hidden), np.float32)
    head = rng.standard_normal((config.vocab_size, config.hidden), np.float32)
    text = rng.integers(config.vocab_size, size=config.depths).tolist()
    found = [follow(weights, head, embedded, inject(weights, states), text) for weights in (one, other)]
    chosen = [np.isfinite(logits) for logits in found]
    if not np.array_equal(chosen[0], chosen[1]):
        return float("inf")
    return float(np.abs(found[0][chosen[0]] - found[1][chosen[0]]).max())
