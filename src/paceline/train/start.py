"""Training that goes on from a drafter: another data set, more depths, a lower learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from paceline.errors import TrainingError
from paceline.models.cache import sha256_of
from paceline.train.architectures._base import Architecture

_FILE = "model.safetensors"


def take_over(fresh: Architecture, folder: Path) -> None:
    """Give a fresh drafter the weights and the tokens of the one in a folder; if it is to propose fewer
    tokens, its own and the rows of these.

    Raises TrainingError if there is none, it is damaged, of another architecture or size, or does not know a
    token that the fresh one is to propose.
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
        rows = _places(fresh.vocabulary, tokens, path)
        outer = [
            name for name, weight in fresh.named_parameters() if any(weight is one for one in fresh.outer)
        ]
        tensors |= {name: tensors[name][rows] for name in outer if len(tensors.get(name, ())) == len(tokens)}
        tokens = fresh.vocabulary
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


def _places(wanted: Tensor, tokens: Tensor, path: Path) -> Tensor:
    """Where the wanted tokens [D] stand among others, int64 [D]. Raises TrainingError naming one that does
    not."""
    places = {token: place for place, token in enumerate(tokens.tolist())}
    unknown = [token for token in wanted.tolist() if token not in places]
    if unknown:
        raise TrainingError(
            f"{path}: does not know token {unknown[0]}, one of the {len(wanted)} most frequent of the data; "
            "choose a larger draft_vocab"
        )
    return torch.tensor([places[token] for token in wanted.tolist()])


def history(folder: str) -> list[dict[str, Any]]:
    """The runs that made a drafter, the last one last, as its card tells: settings, steps, tokens. Empty for
    no folder, and for a drafter without a card."""
    try:
        card = json.loads((Path(folder) / "card.json").read_bytes()) if folder else {}
        own = (
            {name: card[name] for name in ("settings", "steps", "trained_tokens", "seconds")}
            if card
            else None
        )
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
