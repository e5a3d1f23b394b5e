"""Where a run stands, on disk: it goes on from there as if it had never stopped.

    run.json                     the settings and the data set; written once, at the start
    log.jsonl                    a line for each step that was logged or measured
    training/state-N.safetensors what N steps have made: parameters, their average, the optimiser's moments,
                                 the best parameters so far
    training/checkpoint.json     which of these files counts, its checksum, and how far the log goes

Each file appears whole or not at all, and checkpoint.json after the file it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from paceline.errors import TrainingError
from paceline.models.cache import write_atomically

FOLDER = "training"
NAME = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    step          optimiser steps done
    seconds       time they took, over all starts
    log_bytes     length of the log by then
    best          the best measurement so far, None before the first
    """

    step: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    best: Mapping[str, Any] | None = None


def write(folder: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Put a checkpoint on disk, then forget the one before. Raises TrainingError."""
    own = folder / FOLDER
    name = f"state-{progress.step:08}.safetensors"
    data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    put(own / name, data)
    record = {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "progress": asdict(progress)}
    put(own / NAME, json.dumps(record, indent=1).encode())
    for old in [*own.glob("state-*.safetensors"), *own.glob(".*.partial")]:
        if old.name != name:
            old.unlink()


def read(folder: Path, expected: Mapping[str, Tensor]) -> tuple[Progress, dict[str, Tensor]] | None:
    """The checkpoint in a folder; None if there is none yet.

    expected: tensors of the names and shapes that it must hold. Raises TrainingError naming the file if it is
    damaged or belongs to another drafter.
    """
    path = folder / FOLDER / NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        state = path.with_name(record["file"])
        progress, digest = Progress(**record["progress"]), record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(f"{path}: is damaged; choose another folder") from None
    try:
        data = state.read_bytes()
    except OSError as error:
        raise TrainingError(f"{state}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise TrainingError(f"{state}: is damaged or cut short, its checksum does not match")
    tensors = load(data)
    for name, like in expected.items():
        found = tensors.get(name)
        if found is None or found.shape != like.shape:
            shape = "missing" if found is None else list(found.shape)
            raise TrainingError(
                f"{state}: {name} is {shape}, expected {list(like.shape)}: it is of another drafter"
            )
    return progress, tensors


def put(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all. Raises TrainingError."""
    try:
        with write_atomically(path) as file:
            file.write(data)
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from None
