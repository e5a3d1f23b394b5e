"""Folders of trained exits: config.json and model.safetensors. No other engine has such drafters, so the form
is ours.

`exits.{layer}.weight` [H, H] and `exits.{layer}.norm.weight` [H] read the target out behind its first `layer`
layers; `num_hidden_layers` is how many it has. `paceline.trained.exits_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import ModelFileError
from paceline.models.drafter_folder import CONFIG, TENSORS, Floats, Settings, read_json, taken
from paceline.models.safetensors_file import read_safetensors

KIND, CLASS = "exit", "PacelineExits"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitConfig:
    """What exits are.

    exits       after how many layers the target is read out, ascending
    hidden, layers, vocab_size, norm_eps   of the target
    """

    exits: tuple[int, ...]
    hidden: int
    layers: int
    vocab_size: int
    norm_eps: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors, and their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for exit in self.exits:
            shapes[f"exits.{exit}.weight"] = (self.hidden, self.hidden)
            shapes[f"exits.{exit}.norm.weight"] = (self.hidden,)
        return shapes

    @property
    def described(self) -> dict[str, Any]:
        """The config.json that says all this."""
        return {
            "architectures": [CLASS],
            "model_type": KIND,
            "exits": list(self.exits),
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.norm_eps,
        }


@dataclass(frozen=True, slots=True)
class ExitWeights:
    """Exits as their folder describes them. tensors: float32, by the names of `ExitConfig.shapes`."""

    config: ExitConfig
    tensors: Mapping[str, Floats]


def read_exits(folder: Path) -> ExitWeights:
    """The exits in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    if held.get("model_type") != KIND:
        raise held.wrong("model_type", f'"{KIND}"')
    layers, exits = held.integer("num_hidden_layers"), held.ids("exits", 0)
    if list(exits) != sorted(set(exits)) or not 1 <= exits[0] <= exits[-1] < layers:
        raise held.wrong("exits", f"different numbers from 1 to {layers - 1}, ascending")
    config = ExitConfig(
        exits=exits,
        hidden=held.integer("hidden_size"),
        layers=layers,
        vocab_size=held.integer("vocab_size"),
        norm_eps=held.number("rms_norm_eps"),
    )
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    return ExitWeights(config, taken(path, read_safetensors(path), config.shapes, set()))
