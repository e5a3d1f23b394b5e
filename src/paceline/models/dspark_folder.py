"""Folders of DSpark drafters: DFlash's, with a Markov head and a confidence head beside its layers.

Read in two forms: that of the speculators library, which vLLM loads and which is written, too, and the native
one of the authors (`Qwen3DSparkModel`). They differ where DFlash's do (`paceline.models.dflash_folder`), and
in what the slot of the known token does where `sample_from_anchor` is not written: in the native form it
predicts, in the other it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.models.dflash_folder import (
    DFlashConfig,
    DFlashWeights,
    block_fields,
    layers_form,
    read_weights,
    speculators_fields,
)
from paceline.models.drafter_folder import CONFIG, Settings, expect, proposal, read_json

NATIVE_ARCHITECTURES = ("Qwen3DSparkModel", "DSparkDraftModel")

MARKOV_IN = "markov_head.markov_w1.weight"
MARKOV_OUT = "markov_head.markov_w2.weight"
CONFIDENCE = "confidence_head.proj.weight"
CONFIDENCE_BIAS = "confidence_head.proj.bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class DSparkConfig(DFlashConfig):
    """What the forward pass of a DSpark drafter must know beside its weights.

    rank                  of the Markov head
    from_anchor           the slot of the known token predicts the first drafted one, and each mask the token
                          behind its own place; otherwise each mask predicts the token in its place
    confidence            there is a confidence head
    confidence_tokens     it reads the Markov head's row of the token above, too
    """

    rank: int
    from_anchor: bool
    confidence: bool
    confidence_tokens: bool

    @property
    def depths(self) -> int:
        """Drafted tokens along one path."""
        return self.block if self.from_anchor else self.block - 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that every such drafter has, and their shapes."""
        shapes = {
            **super(DSparkConfig, self).shapes,
            MARKOV_IN: (self.vocab_size, self.rank),
            MARKOV_OUT: (self.draft_vocab_size, self.rank),
        }
        if self.confidence:
            shapes[CONFIDENCE] = (1, self.hidden + self.confidence_tokens * self.rank)
            shapes[CONFIDENCE_BIAS] = (1,)
        return shapes


@dataclass(frozen=True, slots=True)
class DSparkWeights(DFlashWeights):
    """A DSpark drafter as its folder describes it; see `DFlashWeights`."""

    config: DSparkConfig


def is_dspark(held: Mapping[str, Any]) -> bool:
    """Whether a config.json says that it is such a drafter's."""
    kind = held.get("speculators_model_type")
    return kind == "dspark" or (kind is None and _native_architecture(held.get("architectures")))


def read_dspark(folder: Path) -> DSparkWeights:
    """The drafter in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    config = _speculators(held) if "speculators_model_type" in held else _native(held)
    found = read_weights(folder, config)
    return DSparkWeights(config, found.tensors, found.token_ids)


def speculators_form(config: DSparkConfig, target: str) -> dict[str, Any]:
    """config.json of the speculators form. target: the model it is for."""
    return {
        "architectures": ["Qwen3DSparkModel"],
        "speculators_model_type": "dspark",
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.hidden,
        "aux_hidden_state_layer_ids": list(config.layer_ids),
        "block_size": config.block,
        "mask_token_id": config.mask_token,
        "sample_from_anchor": config.from_anchor,
        "markov_rank": config.rank,
        "markov_head_type": "vanilla",
        "enable_confidence_head": config.confidence,
        "confidence_head_with_markov": config.confidence_tokens,
        "transformer_layer_config": layers_form(config),
        "speculators_config": proposal("dspark", config.depths, target),
    }


def _speculators(held: Settings) -> DSparkConfig:
    if held.get("speculators_model_type") != "dspark":
        raise held.wrong("speculators_model_type", '"dspark"')
    return _config(held, speculators_fields(held), from_anchor=False)


def _native(held: Settings) -> DSparkConfig:
    if not _native_architecture(held.get("architectures")):
        raise held.wrong("architectures", f'["{NATIVE_ARCHITECTURES[0]}"], or speculators_model_type')
    ids = held.ids("target_layer_ids", 1)
    return _config(held, {**block_fields(held, held, held, held), "layer_ids": ids}, from_anchor=True)


def _native_architecture(found: object) -> bool:
    return isinstance(found, list) and len(found) == 1 and found[0] in NATIVE_ARCHITECTURES


def _config(held: Settings, fields: dict[str, Any], *, from_anchor: bool) -> DSparkConfig:
    """from_anchor: what holds where the settings do not say."""
    expect(held, "markov_head_type", ("vanilla", None))
    confidence = held.flag("enable_confidence_head", False)
    config = DSparkConfig(
        **fields,
        rank=held.integer("markov_rank"),
        from_anchor=held.flag("sample_from_anchor", from_anchor),
        confidence=confidence,
        confidence_tokens=confidence and held.flag("confidence_head_with_markov", False),
    )
    if config.depths < 1:
        raise held.wrong("block_size", "at least 2")
    return config
