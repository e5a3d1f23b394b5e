"""Folders of recurrent drafters: config.json and model.safetensors, in a form of our own.

A cell [gate, up, down] reads an embedding and a state beside each other and changes the state; further layers
read the state alone. `lm_head.weight` turns the state into logits of the `truncated_vocab_size` tokens whose
ids `token_map` holds, as in folders of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ModelFileError
from paceline.models.drafter_folder import (
    CONFIG,
    TENSORS,
    Floats,
    Settings,
    draft_vocabulary,
    read_json,
    taken,
    token_map_of,
)
from paceline.models.safetensors_file import read_safetensors

MOST = 16
"""Drafted tokens along one path, and layers, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedrafterConfig:
    """What the forward pass of a recurrent drafter must know beside its weights.

    hidden            width of the target's hidden states and of its own
    inner             width between the matrices of a layer
    layers            of which the first, the cell, reads an embedding too
    depths            drafted tokens along one path that it was trained for
    vocab_size        tokens of the target
    draft_vocab_size  tokens that can be proposed
    """

    hidden: int
    inner: int
    layers: int
    depths: int
    vocab_size: int
    draft_vocab_size: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors, and their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            reads = self.hidden if layer else 2 * self.hidden
            shapes[f"layers.{layer}.gate.weight"] = (self.inner, reads)
            shapes[f"layers.{layer}.up.weight"] = (self.inner, reads)
            shapes[f"layers.{layer}.down.weight"] = (self.hidden, self.inner)
        return {**shapes, "lm_head.weight": (self.draft_vocab_size, self.hidden)}

    @property
    def described(self) -> dict[str, Any]:
        """The config.json that says all this."""
        return {
            "model_type": "redrafter",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_draft_tokens": self.depths,
            "vocab_size": self.vocab_size,
            "truncated_vocab_size": self.draft_vocab_size,
        }


@dataclass(frozen=True, slots=True)
class RedrafterWeights:
    """A recurrent drafter as its folder describes it.

    tensors    float32, by the names of `RedrafterConfig.shapes`
    token_ids  int64 [draft_vocab_size]: the target's id of each token that can be proposed
    """

    config: RedrafterConfig
    tensors: Mapping[str, Floats]
    token_ids: NDArray[np.int64]


def read_redrafter(folder: Path) -> RedrafterWeights:
    """The recurrent drafter in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    if held.get("model_type") != "redrafter":
        raise held.wrong("model_type", '"redrafter"')
    counts = {key: held.integer(key) for key in ("num_hidden_layers", "num_draft_tokens")}
    for key, count in counts.items():
        if count > MOST:
            raise held.wrong(key, f"at most {MOST}")
    vocab_size = held.integer("vocab_size")
    config = RedrafterConfig(
        hidden=held.integer("hidden_size"),
        inner=held.integer("intermediate_size"),
        layers=counts["num_hidden_layers"],
        depths=counts["num_draft_tokens"],
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocabulary(held, "truncated_vocab_size", vocab_size),
    )
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    found = read_safetensors(path)
    token_ids = token_map_of(path, vocab_size, config.draft_vocab_size, found.get("token_map"))
    return RedrafterWeights(config, taken(path, found, config.shapes, {"token_map"}), token_ids)
