"""Files of safetensors, read into NumPy arrays and written.

The library of that name is not used: its NumPy part does not know bfloat16, which drafters are kept in.

Source: the format's own description (huggingface/safetensors, README): 8 bytes length of a JSON header, the
header, then the data of all tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ModelFileError
from paceline.models.cache import write_atomically

_TYPES: dict[str, type[Any]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # NumPy has none
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_MAX_HEADER = 100_000_000
"""What the format allows."""


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """{name: tensor}; all kinds of floats become float32, the others stay what they are.

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
    values: NDArray[Any] = body[start:end].copy().view(_TYPES[kind]).reshape(shape)
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if kind in ("F64", "F16") else values


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write tensors of float32, int64, int32, uint8 or bool; float32 whose values are all bfloat16's as
    those.

    The file appears whole or not at all. Raises OSError; ValueError for another kind of numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts = []
    at = 0
    for name, tensor in tensors.items():
        kind, part = _stored(np.ascontiguousarray(tensor).reshape(np.shape(tensor)))
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [at, at + part.nbytes]}
        parts.append(part)
        at += part.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with write_atomically(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(part.tobytes())


def _stored(tensor: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    if tensor.dtype == np.float32:
        bits = tensor.view(np.uint32)
        return ("F32", tensor) if (bits & 0xFFFF).any() else ("BF16", (bits >> 16).astype(np.uint16))
    for kind in ("I64", "I32", "U8", "BOOL"):
        if tensor.dtype == _TYPES[kind]:
            return kind, tensor
    raise ValueError(f"tensors of {tensor.dtype} cannot be written")
