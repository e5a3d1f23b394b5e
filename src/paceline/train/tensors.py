"""Files in the safetensors format, written straight from arrays and mapped when read.

The format's own library writes bfloat16 for PyTorch only, and making data needs no PyTorch.
bfloat16 arrays are uint16 here: the upper halves of the bits of float32 numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import TrainingError
from paceline.models.cache import write_atomically

_NAMES = {"uint16": "BF16", "float32": "F32", "int32": "I32", "int64": "I64"}
_TYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}
_BLOCK = 1 << 22


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 numbers, of two equally near ones the even; not for NaN."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def to_float32(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The same numbers as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> tuple[int, str]:
    """Write int32, int64, float32 and bfloat16 arrays; the file is there whole or not at all.

    Returns its bytes and its SHA-256. Raises TrainingError if the disk does not take it.
    """
    header: dict[str, Any] = {}
    at = 0
    for name, array in tensors.items():
        kind = _NAMES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts: list[Any] = [len(text).to_bytes(8, "little"), text]
    parts += [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in tensors.values()]
    digest = hashlib.sha256()
    try:
        with write_atomically(path) as file:
            for part in parts:
                file.write(part)
                digest.update(part)
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from None
    return 8 + len(text) + at, digest.hexdigest()


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file that is as `write_tensors` wrote it; they stay on disk and are mapped."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    return {
        name: data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        .view(_TYPES[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
