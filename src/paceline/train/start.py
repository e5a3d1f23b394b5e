"""Training that goes on from a drafter: another data set, more depths, a lower learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from paceline.errors import TrainingError
from paceline.models.cache import sha256_of
from paceline.train.architectures._base import Architecture
from paceline.train.card import CARD, RUN

_FILE = "model.safetensors"


def take_over(fresh: Architecture, folder: Path, counts: NDArray[np.int64]) -> None:
    """Give a fresh drafter the weights and the tokens of the one in a folder; if it is to propose fewer, the
    most frequent of these.

    counts: int64 [V], how often each token stands in the answers. Raises TrainingError if there is none, it
    is damaged, or of another architecture or size.
    """
    path = folder / _FILE
    try:
        tensors = load_file(path)
        tokens = fresh.known_tokens(tensors)
    except OSError as error:
        raise TrainingError(
            f"{path}: {error.strerror or error}; --start-from names a drafter's folder"
        ) from None
    except SafetensorError as error:
        raise TrainingError(f"{path}: is damaged: {error}") from None
    except KeyError as error:
        raise TrainingError(f"{path}: holds no {error}: it is of another architecture") from None
    start = fresh.start
    if len(tokens) > len(fresh.vocabulary):
        often = np.argsort(-counts[tokens.numpy()], kind="stable")[: len(fresh.vocabulary)]
        rows = torch.from_numpy(np.sort(often))
        outer = [
            name for name, weight in fresh.named_parameters() if any(weight is one for one in fresh.outer)
        ]
        tensors |= {name: tensors[name][rows] for name in outer if len(tensors.get(name, ())) == len(tokens)}
        tokens = tokens[rows]
    expected = {**start, "its tokens": fresh.vocabulary}
    for name, own in expected.items():
        found = tokens if own is fresh.vocabulary else tensors.get(name)
        if found is None or found.shape != own.shape:
            shape = "missing" if found is None else list(found.shape)
            raise TrainingError(
                f"{path}: {name} is {shape}, expected {list(own.shape)}: it is of another drafter"
            )
    with torch.no_grad():
        for name, weight in start.items():
            weight.copy_(tensors[name])
        fresh.vocabulary.copy_(tokens)


def history(folder: str) -> list[dict[str, Any]]:
    """The runs that made a drafter, the last one last, as its card tells: settings, steps, tokens. Empty for
    no folder, and for a drafter without a card."""
    try:
        card = json.loads((Path(folder) / CARD).read_bytes()) if folder else {}
        own = {name: card[name] for name in RUN} if card else None
        return [*card.get("before", ()), own] if own else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def checksum(folder: str) -> str:
    """SHA-256 of the weights in a drafter's folder; empty for no folder. Raises TrainingError."""
    if not folder:
        return ""
    path = Path(folder) / _FILE
    try:
        return sha256_of(path)
    except OSError as error:
        raise TrainingError(
            f"{path}: {error.strerror or error}; --start-from names a drafter's folder"
        ) from None
