"""Files of safetensors, as NumPy arrays. bfloat16 numbers are uint16 (`paceline.models.bfloat16`).

The library of that name is not used: its NumPy part does not know bfloat16, which drafters and hidden states
are kept in.

Source: the format's own description (huggingface/safetensors, README): 8 bytes length of a JSON header, the
header, then the data of all tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ModelFileError
from paceline.models.bfloat16 import to_float32
from paceline.models.cache import write_atomically

_TYPES: dict[str, type[Any]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_MAX_HEADER = 100_000_000
"""What the format allows."""


def map_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """{name: tensor} as the file holds them; they stay on disk and are mapped.

    Raises ModelFileError if the file is missing, cut off or damaged, or holds other kinds of numbers.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise ModelFileError(f"{path} cannot be read: {error}") from None
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise ModelFileError(f"{path} is damaged: its header is cut off")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        places = {name: place for name, place in header.items() if name != "__metadata__"}
        return {name: _tensor(place, data[8 + length :]) for name, place in places.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """{name: tensor} in memory; all kinds of floats become float32, the others stay what they are. Raises
    like `map_safetensors`."""
    return {name: _plain(tensor) for name, tensor in map_safetensors(path).items()}


def _tensor(place: Any, body: NDArray[np.uint8]) -> NDArray[Any]:
    """Raises ValueError for a place that is none, and whatever comes of one that is not described."""
    kind, shape, (start, end) = place["dtype"], place["shape"], place["data_offsets"]
    if kind not in _TYPES:
        raise ValueError(f"numbers of kind {kind!r} are not supported, expected {', '.join(_TYPES)}")
    if not all(type(size) is int and size >= 0 for size in [*shape, start]):
        raise ValueError(f"{place} is no place")
    if end - start != prod(shape) * np.dtype(_TYPES[kind]).itemsize:
        raise ValueError(f"a tensor of shape {shape} in {end - start} bytes")
    if end > len(body):
        raise ValueError(f"the file is cut off: {len(body)} bytes of tensors, {end} expected")
    values: NDArray[Any] = body[start:end].view(_TYPES[kind]).reshape(shape)
    return values


def _plain(tensor: NDArray[Any]) -> NDArray[Any]:
    if tensor.dtype == np.uint16:
        return to_float32(np.asarray(tensor))
    return np.array(tensor, np.float32 if tensor.dtype.kind == "f" else tensor.dtype)


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> tuple[int, str]:
    """Write tensors; the file appears whole or not at all. Returns its bytes and its SHA-256.

    Raises OSError; ValueError for a kind of numbers that the format, or `map_safetensors`, does not have.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"tensors of {tensor.dtype} cannot be written")
        end = at + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts: list[Any] = [len(text).to_bytes(8, "little"), text, *map(_bytes, tensors.values())]
    digest = hashlib.sha256()
    with write_atomically(path) as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    return 8 + len(text) + at, digest.hexdigest()


def _bytes(tensor: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
