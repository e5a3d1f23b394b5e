"""Trained DSpark drafters for vLLM: folders of the speculators form, read back and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.errors import ConfigError, ModelFileError
from paceline.models.bfloat16 import narrowed
from paceline.models.dflash_folder import HEAD
from paceline.models.drafter_folder import known_tokens
from paceline.models.dspark_folder import DSparkWeights, read_dspark, speculators_form
from paceline.trained.dflash_reference import inject
from paceline.trained.dspark_reference import follow
from paceline.trained.export import TOLERANCE, Exported, command_for, write_folder


def export_dspark(weights: DSparkWeights, to: str, folder: Path, target: str) -> Exported:
    """Write a drafter for an engine, "vllm", read it back and compare.

    target: the model that the engine serves with it; by default the one the drafter was trained for. Raises
    ConfigError; ModelFileError if the folder cannot be written, or reads back as another drafter.
    """
    config = weights.config
    target = target or config.verifier
    if to != "vllm":
        raise ConfigError(f"DSpark drafters are written for vLLM alone, not for {to}")
    if not target:
        raise ConfigError("the drafter does not say which target it was trained for: name it with --target")
    reduced = config.draft_vocab_size < config.vocab_size
    if reduced and HEAD not in weights.tensors:
        raise ConfigError("the drafter has a reduced vocabulary and no head: engines load none without")
    named = {name: narrowed(tensor) for name, tensor in weights.tensors.items()}
    if reduced:
        named |= known_tokens(weights.token_ids, config.vocab_size)
    written = speculators_form(config, target)
    write_folder(folder, written, named)
    again = read_dspark(folder)
    difference = compare(weights, again)
    same = again.config.layer_ids == config.layer_ids and again.config.mask_token == config.mask_token
    same = same and np.array_equal(again.token_ids, weights.token_ids)
    if not same or not difference <= TOLERANCE:
        raise ModelFileError(f"{folder} reads back as another drafter: logits differ by {difference:.2g}")
    return Exported(folder, written, command_for(to, "dspark", target, folder, config.depths), difference)


def compare(one: DSparkWeights, other: DSparkWeights) -> float:
    """The largest difference between their logits, and between their confidences, by the reference, along a
    random path behind a random text with random hidden states; infinite where their blocks are not alike."""
    config, rng = one.config, np.random.default_rng(0)
    theirs = other.config
    if (config.block, config.depths, config.hidden) != (theirs.block, theirs.depths, theirs.hidden):
        return float("inf")
    states = list(rng.standard_normal((len(config.layer_ids), 8, config.hidden), np.float32))
    embedded = rng.standard_normal((config.block, config.hidden), np.float32)
    shared = rng.standard_normal((config.draft_vocab_size, config.hidden), np.float32)
    text = rng.integers(config.vocab_size, size=config.depths).tolist()
    found = [
        follow(weights, weights.tensors.get(HEAD, shared), embedded, inject(weights, states), text)
        for weights in (one, other)
    ]
    return max(float(np.abs(left - right).max()) for left, right in zip(*found, strict=True))
