"""Folders of heads: config.json and model.safetensors. Of Medusa in the form that vLLM loads.

`blocks.{head}.layers.{layer}.weight` are the blocks behind the target's last hidden state,
`lm_heads.{head}.weight` turns what block `head` yields into logits; with `original_lm_head` the first serves
all. `token_map` holds the target's ids of the `truncated_vocab_size` tokens that are proposed; the rows of a
head are those tokens', or all the target's.

Hydra has no form that engines share. Here it is Medusa's with another `model_type`, "hydra", and wider first
layers: that of block k reads the state and, behind it, the target's embeddings of k + 1 tokens, from the one
that the target drew from the state to the last drafted one, each divided by its root mean square.

Source: vllm/model_executor/models/medusa.py and vllm/transformers_utils/configs/medusa.py.
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
    checked_tensor,
    draft_vocabulary,
    expect,
    read_json,
    token_map_of,
)
from paceline.models.safetensors_file import read_safetensors

KINDS = {"medusa": "MedusaModel", "hydra": "HydraModel"}
"""What folders call the kinds of heads: {`model_type`: the name in `architectures`}."""

MOST = 16
"""Heads, and layers of a block, at most."""

_NEUTRAL: dict[str, tuple[object, ...]] = {"logit_scale": (1, 1.0), "quantization_config": (None,)}
"""Settings that change what is computed, with the values that are implemented."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsConfig:
    """What the forward pass of such heads must know beside their weights.

    kind              one of KINDS
    hidden            width of the target's hidden states
    depths            blocks: drafted tokens along one path
    layers            of each block
    vocab_size        tokens of the target
    draft_vocab_size  tokens that can be proposed
    bias              the layers of blocks have biases
    shared            one head for all blocks
    """

    kind: str
    hidden: int
    depths: int
    layers: int
    vocab_size: int
    draft_vocab_size: int
    bias: bool
    shared: bool

    def reads(self, block: int, layer: int) -> int:
        """How many numbers a layer reads."""
        embeddings = block + 1 if self.kind == "hydra" and layer == 0 else 0
        return (1 + embeddings) * self.hidden

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors, and their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for block in range(self.depths):
            for layer in range(self.layers):
                shapes[f"blocks.{block}.layers.{layer}.weight"] = (self.hidden, self.reads(block, layer))
                if self.bias:
                    shapes[f"blocks.{block}.layers.{layer}.bias"] = (self.hidden,)
        for head in range(1 if self.shared else self.depths):
            shapes[f"lm_heads.{head}.weight"] = (self.draft_vocab_size, self.hidden)
        return shapes

    @property
    def described(self) -> dict[str, Any]:
        """The config.json that says all this."""
        return {
            "architectures": [KINDS[self.kind]],
            "model_type": self.kind,
            "hidden_size": self.hidden,
            "num_heads": self.depths,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocab_size,
            "truncated_vocab_size": self.draft_vocab_size,
            "medusa_fc_bias": self.bias,
            "original_lm_head": self.shared,
        }


@dataclass(frozen=True, slots=True)
class HeadsWeights:
    """Heads as their folder describes them.

    tensors    float32, by the names of `HeadsConfig.shapes`
    token_ids  int64 [draft_vocab_size]: the target's id of each token that can be proposed
    """

    config: HeadsConfig
    tensors: Mapping[str, Floats]
    token_ids: NDArray[np.int64]


def read_heads(folder: Path, kind: str | None = None) -> HeadsWeights:
    """The heads in a folder; kind: which they must be. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    kinds = KINDS if kind is None else {kind: KINDS[kind]}
    if held.get("model_type") not in kinds:
        raise held.wrong("model_type", " or ".join(f'"{kind}"' for kind in kinds))
    config = _config(held)
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    found = {name.removeprefix("medusa_heads."): tensor for name, tensor in read_safetensors(path).items()}
    token_ids = token_map_of(path, config.vocab_size, config.draft_vocab_size, found.pop("token_map", None))
    tensors: dict[str, Floats] = {}
    for name, shape in config.shapes.items():
        if name not in found:
            raise ModelFileError(f"{path}: tensor {name} is missing")
        tensor = found.pop(name)
        if name.startswith("lm_heads.") and tensor.shape == (config.vocab_size, config.hidden):
            tensor = tensor[token_ids]
        tensors[name] = checked_tensor(path, name, tensor, shape)
    if found:
        raise ModelFileError(f"{path}: heads as {CONFIG} describes them have no tensor {min(found)}")
    return HeadsWeights(config, tensors, token_ids)


def _config(held: Settings) -> HeadsConfig:
    for key, neutral in _NEUTRAL.items():
        expect(held, key, neutral)
    counts = {key: held.integer(key) for key in ("num_heads", "num_hidden_layers")}
    for key, count in counts.items():
        if count > MOST:
            raise held.wrong(key, f"at most {MOST}")
    vocab_size = held.integer("vocab_size")
    return HeadsConfig(
        kind=held.get("model_type"),
        hidden=held.integer("hidden_size"),
        depths=counts["num_heads"],
        layers=counts["num_hidden_layers"],
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocabulary(held, "truncated_vocab_size", vocab_size),
        bias=held.flag("medusa_fc_bias", False),
        shared=held.flag("original_lm_head", False),
    )
