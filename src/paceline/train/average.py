"""The mean of the weights of drafters that were trained one from another: often better than each of them.

Runs that go on from one drafter stay where the mean of their weights is a drafter, too, whose errors are
their common ones (Wortsman et al., "Model soups", 2022, arXiv 2203.05482: the uniform soup). Runs that began
with different random numbers do not, and their mean knows nothing: `paceline train eval` tells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ConfigError, TrainingError
from paceline.models.bfloat16 import to_bfloat16
from paceline.models.cache import write_atomically
from paceline.models.drafter_folder import CONFIG, TENSORS, read_json
from paceline.models.safetensors_file import map_safetensors, read_safetensors, write_safetensors
from paceline.train import card as cards

_ALIKE = ("target_sha256", "vocabulary")


def average(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the drafter whose weights are the mean of those in some folders of `paceline train run`, the
    newest last, and return its card: that of the newest, and which runs are averaged.

    out: a folder that does not hold a drafter yet. Raises ConfigError; ModelFileError and TrainingError
    naming what is missing, damaged or does not fit the first folder.
    """
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"a mean is of 2 different drafters or more, got {', '.join(map(str, folders))}")
    if (out / CONFIG).exists():
        raise TrainingError(f"{out}: holds a drafter; choose another folder")
    all_cards = [_card(folder) for folder in folders]
    config = read_json(folders[0] / CONFIG)
    for folder, card in zip(folders, all_cards, strict=True):
        if read_json(folder / CONFIG) != config:
            raise TrainingError(f"{folder}: is of another shape or kind than {folders[0]}")
        if [card[name] for name in _ALIKE] != [all_cards[0][name] for name in _ALIKE]:
            raise TrainingError(f"{folder}: was trained for another target than {folders[0]}")
    means = _means(folders)
    newest = {name: value for name, value in all_cards[-1].items() if name != "measured"}
    card = {**newest, "averaged": [{name: one[name] for name in cards.RUN} for one in all_cards]}
    try:
        card["bytes"], _ = write_safetensors(out / TENSORS, means)
        cards.write(out, card)
        with write_atomically(out / CONFIG) as file:  # last: a folder that has one is whole
            file.write(json.dumps(config, indent=2).encode())
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error.strerror}") from None
    return card


def _card(folder: Path) -> dict[str, Any]:
    card = read_json(folder / cards.CARD)
    if missing := [name for name in (*_ALIKE, *cards.RUN, "estimate", "curve") if name not in card]:
        raise TrainingError(f"{folder / cards.CARD}: has no {missing[0]}; `paceline train run` writes it")
    return card


def _means(folders: Sequence[Path]) -> dict[str, NDArray[Any]]:
    """Of each tensor the mean, as exactly as the first folder has it; what is not floats must be the same."""
    stored = map_safetensors(folders[0] / TENSORS)
    first = read_safetensors(folders[0] / TENSORS)
    sums = {name: tensor.astype(np.float64) for name, tensor in first.items()}
    for folder in folders[1:]:
        own = read_safetensors(folder / TENSORS)
        for name, total in sums.items():
            tensor = own.get(name)
            if tensor is None or tensor.shape != total.shape:
                found = "missing" if tensor is None else list(tensor.shape)
                raise TrainingError(f"{folder / TENSORS}: {name} is {found}, expected {list(total.shape)}")
            if tensor.dtype.kind != "f" and not np.array_equal(tensor, stored[name]):
                raise TrainingError(f"{folder / TENSORS}: {name} is other than in {folders[0]}")
            total += tensor
    means: dict[str, NDArray[Any]] = {}
    for name, kept in stored.items():
        mean = sums[name] / len(folders)
        half = kept.dtype == np.uint16
        means[name] = to_bfloat16(mean.astype(np.float32)) if half else mean.astype(kept.dtype)
    return means
