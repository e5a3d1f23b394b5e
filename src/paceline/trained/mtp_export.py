"""Trained MTP modules for other engines: a folder of the speculators form, read back and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from paceline.errors import ConfigError, ModelFileError
from paceline.models.bfloat16 import narrowed
from paceline.models.mtp_folder import MtpWeights, read_mtp, speculators_form
from paceline.trained.export import TOLERANCE, Exported, command_for, write_folder
from paceline.trained.mtp_reference import follow


def export_mtp(weights: MtpWeights, to: str, folder: Path, target: str) -> Exported:
    """Write a module for an engine, one of `paceline.trained.export.ENGINES`, read it back and compare. It
    then proposes all of the target's tokens, for that form knows no reduced vocabulary.

    target: the model that the engine serves with it; by default the one the module was trained for. Raises
    ConfigError; ModelFileError if the folder cannot be written, or reads back as another module.
    """
    config = weights.config
    target = target or config.verifier
    if not target:
        raise ConfigError("the drafter does not say which target it was trained for: name it with --target")
    if to == "sglang":
        raise ConfigError("SGLang looks for MTP modules in the target's own folder alone")
    written = speculators_form(replace(config, draft_vocab_size=config.vocab_size), target)
    write_folder(folder, written, {name: narrowed(tensor) for name, tensor in weights.tensors.items()})
    difference = compare(weights, read_mtp(folder))
    if not difference <= TOLERANCE:
        raise ModelFileError(f"{folder} reads back as another drafter: logits differ by {difference:.2g}")
    command = command_for(to, "mtp", target, folder, config.draft_tokens)
    return Exported(folder, written, command, difference)


def compare(one: MtpWeights, other: MtpWeights) -> float:
    """The largest difference between their logits for the first one's tokens, by the reference, on a random
    text with random hidden states, below a drafted path, for a random target."""
    config, rng = one.config, np.random.default_rng(0)
    states = rng.standard_normal((8, config.hidden), np.float32)
    embedding, head = rng.standard_normal((2, config.vocab_size, config.hidden), np.float32)
    text = rng.integers(config.vocab_size, size=9).tolist()
    path = one.token_ids[rng.integers(len(one.token_ids), size=3)].tolist()
    rows = head[one.token_ids]
    logits = [follow(weights, rows, embedding, text, states, path) for weights in (one, other)]
    return float(np.abs(logits[0] - logits[1]).max())
