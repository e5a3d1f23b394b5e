"""Trained DFlash drafters for other engines: folders that vLLM and SGLang load, read back and compared.

Layer ids are always written out, counted as each form counts them (see `paceline.models.dflash_folder`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.errors import ConfigError, ModelFileError
from paceline.models.bfloat16 import narrowed
from paceline.models.dflash_folder import (
    HEAD,
    DFlashWeights,
    native_form,
    read_dflash,
    speculators_form,
)
from paceline.models.drafter_folder import known_tokens
from paceline.trained.dflash_reference import forward, inject
from paceline.trained.export import TOLERANCE, Exported, command_for, write_folder


def export_dflash(weights: DFlashWeights, to: str, folder: Path, target: str) -> Exported:
    """Write a drafter for an engine, one of `paceline.trained.export.ENGINES`, read it back and compare.

    target: the model that the engine serves with it; by default the one the drafter was trained for. Raises
    ConfigError; ModelFileError if the folder cannot be written, or reads back as another drafter.
    """
    config = weights.config
    target = target or config.verifier
    if not target:
        raise ConfigError("the drafter does not say which target it was trained for: name it with --target")
    own_head = HEAD in weights.tensors
    if to == "sglang":
        if own_head:
            raise ConfigError(
                "the drafter has a head of its own, and the form of DFlash that SGLang loads has none; "
                "train one that fits with --arch dflash:head=target"
            )
        if 0 in config.layer_ids:
            raise ConfigError(
                "the drafter reads the target's embeddings, which SGLang does not hand to drafters"
            )
    if not own_head and config.draft_vocab_size < config.vocab_size:
        raise ConfigError("the drafter has a reduced vocabulary and no head: engines load none without")
    named = {name: narrowed(tensor) for name, tensor in weights.tensors.items()}
    if config.draft_vocab_size < config.vocab_size:
        named |= known_tokens(weights.token_ids, config.vocab_size)
    written = speculators_form(config, target) if to == "vllm" else native_form(config)
    write_folder(folder, written, named)
    again = read_dflash(folder)
    difference = compare(weights, again)
    same = again.config.layer_ids == config.layer_ids and again.config.mask_token == config.mask_token
    same = same and np.array_equal(again.token_ids, weights.token_ids)
    if not same or not difference <= TOLERANCE:
        raise ModelFileError(f"{folder} reads back as another drafter: logits differ by {difference:.2g}")
    command = command_for(to, "dflash", target, folder, config.depths)
    return Exported(folder, written, command, difference)


def compare(one: DFlashWeights, other: DFlashWeights) -> float:
    """The largest difference between their logits, by the reference, behind a random text with random hidden
    states; infinite where their blocks are not alike."""
    config, rng = one.config, np.random.default_rng(0)
    if (config.block, config.hidden) != (other.config.block, other.config.hidden):
        return float("inf")
    states = list(rng.standard_normal((len(config.layer_ids), 8, config.hidden), np.float32))
    embedded = rng.standard_normal((config.block, config.hidden), np.float32)
    shared = rng.standard_normal((config.draft_vocab_size, config.hidden), np.float32)
    logits = [
        forward(weights, weights.tensors.get(HEAD, shared), embedded, inject(weights, states))
        for weights in (one, other)
    ]
    return float(np.abs(logits[0] - logits[1]).max())
