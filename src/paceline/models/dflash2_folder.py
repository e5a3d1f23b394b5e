"""Folders of DFlash 2 drafters: config.json and model.safetensors in the native form, which vLLM and SGLang
load.

It is DFlash's native form with convolutions around the parts of each layer, and a selector that chooses among
the likeliest tokens of each place. Embeddings and head are the target's. Layer ids are counted as there, see
`paceline.models.dflash_folder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.models.dflash_folder import (
    DFlashConfig,
    DFlashWeights,
    native_fields,
    native_form,
    read_weights,
)
from paceline.models.drafter_folder import CONFIG, Settings, read_json

ARCHITECTURE = "DFlash2DraftModel"

GATE = "candidate_selector.hidden_projection.weight"
ABOVE = "candidate_selector.predecessor_codebook"
BELOW = "candidate_selector.successor_codebook"
CONVOLUTIONS = ("attention_conv", "mlp_conv")


@dataclass(frozen=True, slots=True, kw_only=True)
class DFlash2Config(DFlashConfig):
    """What the forward pass of a DFlash 2 drafter must know beside its weights.

    kernel      slots that a convolution reads: its own and those right before it
    group       channels that share what a slot adds to their kernels
    rank        of the selector
    candidates  tokens of each place that it chooses from
    """

    kernel: int
    group: int
    rank: int
    candidates: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that every such drafter has, and their shapes."""
        shapes = super(DFlash2Config, self).shapes
        kernels = 2 * self.kernel * (self.hidden // self.group)
        for number in range(self.layers):
            for name in CONVOLUTIONS:
                shapes[f"layers.{number}.{name}.base_kernel"] = (2, self.kernel, self.hidden)
                shapes[f"layers.{number}.{name}.kernel_projection.weight"] = (kernels, self.hidden)
        codebook = (self.vocab_size, self.rank)
        return {**shapes, GATE: (self.rank, self.hidden), ABOVE: codebook, BELOW: codebook}


@dataclass(frozen=True, slots=True)
class DFlash2Weights(DFlashWeights):
    """A DFlash 2 drafter as its folder describes it; see `DFlashWeights`."""

    config: DFlash2Config


def read_dflash2(folder: Path) -> DFlash2Weights:
    """The drafter in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    if held.get("architectures") != [ARCHITECTURE]:
        raise held.wrong("architectures", f'["{ARCHITECTURE}"]')
    fields, own = native_fields(held), held.inside("dflash_config")
    vocab_size, hidden = fields["vocab_size"], fields["hidden"]
    config = DFlash2Config(
        **fields,
        kernel=own.integer("conv_kernel_size"),
        group=own.integer("conv_group_size"),
        rank=own.integer("selector_rank"),
        candidates=own.integer("selector_top_k"),
    )
    if config.draft_vocab_size != vocab_size:
        raise held.wrong("draft_vocab_size", f"all of the target's {vocab_size} tokens")
    if config.block < 2:
        raise held.wrong("block_size", "at least 2")
    if hidden % config.group:
        raise own.wrong("conv_group_size", f"a divisor of {hidden}")
    if config.kernel > config.block:
        raise own.wrong("conv_kernel_size", f"at most the {config.block} slots of a block")
    if config.candidates > vocab_size:
        raise own.wrong("selector_top_k", f"at most the target's {vocab_size} tokens")
    found = read_weights(folder, config)
    return DFlash2Weights(config, found.tensors, found.token_ids)


def described(config: DFlash2Config) -> dict[str, Any]:
    """Its config.json."""
    form = native_form(config)
    selector = {"selector_rank": config.rank, "selector_top_k": config.candidates}
    convolutions = {"conv_kernel_size": config.kernel, "conv_group_size": config.group}
    inside = {**form["dflash_config"], "block_size": config.block, **convolutions, **selector}
    return {**form, "architectures": [ARCHITECTURE], "dflash_config": inside}
