"""Folders of pads: config.json and model.safetensors, in a form of our own, for no other engine reads them.

`embeddings.{place}` [hidden] is what the target reads in place of the token so many places behind the first
that it does not know. `token_map` holds the target's ids of the `truncated_vocab_size` tokens that are
proposed, as in folders of heads.
"""

from __future__ import annotations

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
"""Pads at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PadsConfig:
    """What is known of pads beside their numbers.

    hidden            width of the target's embeddings
    depths            pads: drafted tokens along one path
    vocab_size        tokens of the target
    draft_vocab_size  tokens that can be proposed
    """

    hidden: int
    depths: int
    vocab_size: int
    draft_vocab_size: int

    @property
    def described(self) -> dict[str, Any]:
        """The config.json that says all this."""
        return {
            "model_type": "pads",
            "hidden_size": self.hidden,
            "num_pads": self.depths,
            "vocab_size": self.vocab_size,
            "truncated_vocab_size": self.draft_vocab_size,
        }


@dataclass(frozen=True, slots=True)
class PadsWeights:
    """Pads as their folder describes them.

    embeddings  float32 [depths, hidden], as the target's first layer reads them
    token_ids   int64 [draft_vocab_size]: the target's id of each token that can be proposed
    """

    config: PadsConfig
    embeddings: Floats
    token_ids: NDArray[np.int64]


def read_pads(folder: Path) -> PadsWeights:
    """The pads in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    if held.get("model_type") != "pads":
        raise held.wrong("model_type", '"pads"')
    vocab_size = held.integer("vocab_size")
    config = PadsConfig(
        hidden=held.integer("hidden_size"),
        depths=held.integer("num_pads"),
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocabulary(held, "truncated_vocab_size", vocab_size),
    )
    if config.depths > MOST:
        raise held.wrong("num_pads", f"at most {MOST}")
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    found = read_safetensors(path)
    token_ids = token_map_of(path, config.vocab_size, config.draft_vocab_size, found.get("token_map"))
    shapes = {f"embeddings.{place}": (config.hidden,) for place in range(config.depths)}
    tensors = taken(path, found, shapes, {"token_map"})
    return PadsWeights(config, np.stack([*tensors.values()]), token_ids)
