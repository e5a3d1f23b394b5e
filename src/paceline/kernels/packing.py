"""The layout of packed weights, and the way there from a GGUF's blocks and back.

A GGUF stores a row's 32 weights side by side with their scale. The kernels want one 64-byte load to feed
sixteen output rows, so rows are packed by sixteen (kernels/cpp/records.hpp says where each byte goes). The
numbers are the file's own: nothing is rounded again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16
GROUP = 32
TYPES = ("Q8_0", "Q4_0", "Q4_1")
"""Weight types the kernels multiply with."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def pack(kind: str, raw: Bytes) -> Bytes:
    """Repack a matrix: GGUF blocks uint8 [rows, bytes per row] -> packed uint8 [size]."""
    rows = raw.shape[0]
    scale_bytes = 4 if kind == "Q4_1" else 2
    block = scale_bytes + (32 if kind == "Q8_0" else 16)
    groups = raw.shape[1] // block
    padded = np.zeros((-(-rows // LANES) * LANES, groups, block), np.uint8)
    padded[:rows] = raw.reshape(rows, groups, block)
    lanes = padded.reshape(-1, LANES, groups, block).swapaxes(1, 2)  # [blocks, groups, 16, bytes]
    parts = [_to_64(lanes[..., i : i + 2]) for i in range(0, scale_bytes, 2)]
    numbers = lanes[..., scale_bytes:]
    if kind == "Q8_0":
        quads = (numbers ^ 0x80).reshape(*numbers.shape[:-1], 8, 4)
    else:
        # In the file byte i holds the weights i and i + 16; here a byte holds weights of neighbouring quads.
        plain = np.concatenate([numbers & 15, numbers >> 4], axis=-1)
        quads = plain.reshape(*plain.shape[:-1], 4, 2, 4)
        quads = quads[..., 0, :] | quads[..., 1, :] << 4
    parts.append(_to_64(quads.swapaxes(2, 3)))
    return np.concatenate(parts, axis=1).reshape(-1)


def _to_64(part: NDArray[Any]) -> Bytes:
    """[blocks, ...] -> [blocks, bytes], filled up with zeros to a multiple of 64."""
    flat: Bytes = part.reshape(part.shape[0], -1)
    return np.pad(flat, ((0, 0), (0, -flat.shape[1] % 64)))


def unpack(kind: str, rows: int, columns: int, packed: Bytes) -> tuple[NDArray[np.int16], Floats, Floats]:
    """A packed matrix as (numbers int16 [rows, columns], scales [rows, groups], minima [rows, groups]).

    A weight is scale * number + minimum; Q8_0 and Q4_0 numbers are signed and their minima 0.
    """
    groups = columns // GROUP
    blocks = packed.reshape(-(-rows // LANES), -1)
    half_bytes = groups * LANES * 2
    at = -(-half_bytes // 64) * 64

    def halves(start: int) -> Floats:
        values = blocks[:, start : start + half_bytes].copy().view(np.float16).astype(np.float32)
        return values.reshape(-1, groups, LANES).swapaxes(1, 2).reshape(-1, groups)[:rows]

    scales = halves(0)
    minima = halves(at) if kind == "Q4_1" else np.zeros_like(scales)
    stored = blocks[:, 2 * at if kind == "Q4_1" else at :]
    if kind == "Q8_0":
        quads = stored.reshape(-1, groups, 8, LANES, 4).astype(np.int16) - 128
    else:
        bytes_ = stored.reshape(-1, groups, 4, 1, LANES, 4).astype(np.int16)
        quads = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=3).reshape(-1, groups, 8, LANES, 4)
        quads -= 8 if kind == "Q4_0" else 0
    numbers = quads.transpose(0, 3, 1, 2, 4).reshape(-1, columns)[:rows]
    return numbers, scales, minima


def dequantise(kind: str, rows: int, columns: int, packed: Bytes) -> Floats:
    """The matrix as float32 [rows, columns]."""
    numbers, scales, minima = unpack(kind, rows, columns, packed)
    grouped = numbers.reshape(rows, -1, GROUP).astype(np.float32)
    return (grouped * scales[..., None] + minima[..., None]).reshape(rows, columns)
