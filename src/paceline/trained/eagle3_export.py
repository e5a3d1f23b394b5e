"""Trained EAGLE-3 and P-EAGLE drafters for vLLM and SGLang: folders that they load, read back and compared.

Layer ids, `norm_output` and its kin are always written out: where they are missing each engine guesses its
own way, and a wrong guess only makes the drafter worse (see `paceline.models.eagle3_folder`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.errors import ConfigError, ModelFileError
from paceline.models.bfloat16 import narrowed
from paceline.models.drafter_folder import known_tokens
from paceline.models.eagle3_folder import Eagle3Weights, native_form, read_eagle3, speculators_form
from paceline.trained.eagle3_reference import follow, fuse
from paceline.trained.export import TOLERANCE, Exported, command_for, write_folder
from paceline.trained.peagle_reference import draft


def export_eagle3(
    weights: Eagle3Weights, to: str, folder: Path, target: str, layers: int | None = None
) -> Exported:
    """Write a drafter for an engine, one of `paceline.trained.export.ENGINES`, read it back and compare.

    target: the model that the engine serves with it; by default the one the drafter was trained for. layers:
    how many the target has, for a drafter that does not say which hidden states it reads. Raises ConfigError,
    IncompatibleDrafter; ModelFileError if the folder cannot be written, or reads back as another drafter.
    """
    config = weights.config
    target = target or config.verifier
    if not target:
        raise ConfigError("the drafter does not say which target it was trained for: name it with --target")
    if config.layer_ids is None and layers is None:
        raise ConfigError(
            "the drafter does not say which hidden states of the target it reads: give the number of the "
            "target's layers with --layers, for the usual ones"
        )
    ids = config.layers_of(layers or max(config.layer_ids or (0,)))
    if to == "sglang" and 0 in ids:
        raise ConfigError("the drafter reads the target's embeddings, which SGLang does not hand to drafters")
    parallel = config.mask_token is not None
    if to == "sglang" and parallel:
        raise ConfigError("SGLang loads no drafters of P-EAGLE")
    written = speculators_form(config, ids, target) if to == "vllm" else native_form(config, ids)
    named = {
        (name.replace("layers.0.", "midlayer.") if to == "sglang" else name): narrowed(tensor)
        for name, tensor in weights.tensors.items()
    }
    write_folder(folder, written, named | known_tokens(weights.token_ids, config.vocab_size))
    again = read_eagle3(folder, config.kind)
    difference = compare(weights, again)
    same = again.config.layers_of(layers or max(ids)) == ids
    same = same and again.config.mask_token == config.mask_token
    same = same and np.array_equal(again.token_ids, weights.token_ids)
    if not same or not difference <= TOLERANCE:
        raise ModelFileError(f"{folder} reads back as another drafter: logits differ by {difference:.2g}")
    more = {"parallel_drafting": True} if parallel else {}
    command = command_for(to, "eagle3", target, folder, config.draft_tokens, **more)
    return Exported(folder, written, command, difference)


def compare(one: Eagle3Weights, other: Eagle3Weights) -> float:
    """The largest difference between their logits, by the reference, on a random text with random hidden
    states: of a drafted path below it, or of all that one pass drafts."""
    config, rng = one.config, np.random.default_rng(0)
    states = one.tensors["fc.weight"].shape[1] // config.target_hidden
    hidden_states = rng.standard_normal((states, 8, config.target_hidden), np.float32)
    shared = rng.standard_normal((config.vocab_size, config.hidden), np.float32)
    text = rng.integers(config.vocab_size, size=9).tolist()
    path = one.token_ids[rng.integers(config.draft_vocab_size, size=3)].tolist()
    logits = []
    for weights in (one, other):
        embedding = weights.tensors.get("embed_tokens.weight", shared)
        features = fuse(weights, [*hidden_states])
        if config.mask_token is None:
            logits.append(follow(weights, embedding, text, features, path))
        else:
            logits.append(draft(weights, embedding, text, features))
    return float(np.abs(logits[0] - logits[1]).max())
