"""The layout of packed weights, and the way there from a GGUF's blocks and back.

A GGUF stores a row's weights side by side with their scale. The kernels want one 64-byte load to feed
sixteen output rows, so rows are packed by sixteen (kernels/cpp/records.hpp says where each byte goes). The
numbers are the file's own: nothing is rounded again.

Source: the block structures of ggml (ggml-common.h in the ggml repository).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

LANES = 16
GROUP = 32
_ROWS_AT_ONCE = 1 << 12
"""Rows packed in one go: their unpacked numbers take memory of their own."""


class Embedding(NamedTuple):
    """A packed matrix of embeddings [vocab_size, hidden], which are multiplied by `scale` when they are
    read."""

    type: str
    packed: Bytes
    vocab_size: int
    hidden: int
    scale: float = 1.0

    def row(self, token: int) -> Floats:
        """The embedding of one token as it is read, float32 [hidden]."""
        blocks = self.packed.reshape(-(-self.vocab_size // LANES), -1)
        values = dequantise(self.type, LANES, self.hidden, blocks[token // LANES])
        row: Floats = values[token % LANES] * np.float32(self.scale)
        return row


class Format(NamedTuple):
    """A weight type. A weight is scale * (number - offset) + minimum, where scales and minima are float16,
    each times an 8-bit part in types that have parts; or it is a float.

    bits    of a number: 4, 5, 6 or 8; of a float: 16 or 32
    offset  what stored numbers have been raised by
    minima  whether there are any
    span    columns that share a float16 scale; 0: the weights are floats
    part    columns that share a part of a scale; 0: there are no parts
    """

    bits: int
    offset: int = 0
    minima: bool = False
    span: int = GROUP
    part: int = 0

    @property
    def holds_floats(self) -> bool:
        """Whether weights are floats."""
        return self.span == 0

    @property
    def shared(self) -> int:
        """Columns that share a scale, parts included."""
        return self.part or self.span

    @property
    def multiple(self) -> int:
        """Columns come in multiples of this."""
        return max(self.span, GROUP)


FORMATS = {
    "Q8_0": Format(8, offset=128),
    "Q4_0": Format(4, offset=8),
    "Q4_1": Format(4, minima=True),
    "Q5_0": Format(5, offset=16),
    "Q5_1": Format(5, minima=True),
    "Q4_K": Format(4, minima=True, span=256, part=32),
    "Q5_K": Format(5, minima=True, span=256, part=32),
    "Q6_K": Format(6, offset=32, span=256, part=16),
    "F16": Format(16, span=0),
    "BF16": Format(16, span=0),
    "F32": Format(32, span=0),
}
TYPES = tuple(FORMATS)
"""Weight types the kernels multiply with."""


class _Fields(NamedTuple):
    """What GGUF blocks [rows, blocks, bytes] say: one entry per block, or per part or number inside it."""

    numbers: NDArray[Any]  # uint8 [rows, blocks, columns of a block], raised by the offset
    scales: Bytes  # [rows, blocks, 2]
    minima: Bytes | None = None  # [rows, blocks, 2], with the sign they are added with
    parts: Bytes | None = None  # [rows, blocks, parts], the bytes of an int8
    part_minima: Bytes | None = None


def _halves(bytes_: Bytes) -> Bytes:
    """Low halves, then high halves: the file's byte i holds the weights i and i + len of a run."""
    return np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1)


def _read_8(raw: Bytes) -> _Fields:
    return _Fields(raw[..., 2:] ^ 0x80, raw[..., :2])


def _read_4(raw: Bytes) -> _Fields:
    minima = raw[..., 2:-16] if raw.shape[-1] == 20 else None
    return _Fields(_halves(raw[..., -16:]), raw[..., :2], minima)


def _read_5(raw: Bytes) -> _Fields:
    minima = raw[..., 2:4] if raw.shape[-1] == 24 else None
    fifth = np.unpackbits(raw[..., -20:-16], axis=-1, bitorder="little")
    return _Fields(_halves(raw[..., -16:]) | fifth << 4, raw[..., :2], minima)


def _read_k(raw: Bytes) -> _Fields:
    """Q4_K and Q5_K: d, dmin, twelve bytes with eight 6-bit scales and minima, fifth bits, low halves."""
    low, middle, high = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    parts = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=-1)
    part_minima = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=-1)
    numbers = _halves(raw[..., -128:].reshape(*raw.shape[:-1], 4, 32))
    if raw.shape[-1] == 176:
        fifth = np.unpackbits(raw[..., 16:48, None], axis=-1, bitorder="little").swapaxes(-1, -2)
        numbers |= fifth.reshape(numbers.shape) << 4
    minima = raw[..., 2:4] ^ np.array([0, 0x80], np.uint8)  # the file's are subtracted
    return _Fields(numbers.reshape(*raw.shape[:-1], 256), raw[..., :2], minima, parts, part_minima)


def _read_6_k(raw: Bytes) -> _Fields:
    """Q6_K: low halves, two more bits, int8 scales, d."""
    low = _halves(raw[..., :128].reshape(*raw.shape[:-1], 2, 64)).reshape(*raw.shape[:-1], 2, 4, 32)
    planes = raw[..., 128:192].reshape(*raw.shape[:-1], 2, 1, 32)
    high = planes >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    numbers = (low | high << 4).reshape(*raw.shape[:-1], 256)
    return _Fields(numbers, raw[..., 208:], parts=raw[..., 192:208])


_READERS: dict[str, tuple[int, Callable[[Bytes], _Fields]]] = {
    "Q8_0": (34, _read_8),
    "Q4_0": (18, _read_4),
    "Q4_1": (20, _read_4),
    "Q5_0": (22, _read_5),
    "Q5_1": (24, _read_5),
    "Q4_K": (144, _read_k),
    "Q5_K": (176, _read_k),
    "Q6_K": (210, _read_6_k),
}
"""Per type the bytes of a GGUF block, and what reads blocks."""


def quantise_weights(values: Floats, kind: str = "Q8_0") -> Bytes:
    """Blocks of a type, uint8 [rows, bytes per row], of a matrix float32 [rows, columns], 32 columns each.

    Q8_0: a scale, the largest magnitude over 127, and whole numbers. Q4_1: a scale, a fifteenth of the range,
    the smallest number, and how many scales the others lie above it. Rounds them.
    """
    grouped = values.reshape(len(values), -1, GROUP)
    if kind == "Q4_1":
        return _quantise_4_1(grouped).reshape(len(values), -1)
    assert kind == "Q8_0"
    scales = (np.abs(grouped).max(-1, keepdims=True) / 127).astype(np.float16)
    inverse = np.divide(1, scales, out=np.zeros(scales.shape, np.float32), where=scales > 0, dtype=np.float32)
    numbers = np.clip(np.rint(grouped * inverse), -127, 127).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), numbers.view(np.uint8)], axis=-1).reshape(len(values), -1)


def _quantise_4_1(grouped: Floats) -> Bytes:
    least = grouped.min(-1, keepdims=True)
    scales = ((grouped.max(-1, keepdims=True) - least) / 15).astype(np.float16)
    least = least.astype(np.float16)
    inverse = np.divide(1, scales, out=np.zeros(scales.shape, np.float32), where=scales > 0, dtype=np.float32)
    numbers = np.clip(np.rint((grouped - least) * inverse), 0, 15).astype(np.uint8)
    halves = numbers[..., : GROUP // 2] | numbers[..., GROUP // 2 :] << 4
    return np.concatenate([scales.view(np.uint8), least.view(np.uint8), halves], axis=-1)


def pack(kind: str, raw: Bytes) -> Bytes:
    """Repack a matrix: GGUF blocks, or the bytes of floats, uint8 [rows, bytes per row] -> uint8 [size]."""
    parts = [_pack(kind, raw[at : at + _ROWS_AT_ONCE]) for at in range(0, len(raw), _ROWS_AT_ONCE)]
    return np.concatenate(parts)


def _pack(kind: str, raw: Bytes) -> Bytes:
    rows = raw.shape[0]
    padded = np.zeros((-(-rows // LANES) * LANES, raw.shape[1]), np.uint8)
    padded[:rows] = raw
    format = FORMATS[kind]
    if format.holds_floats:
        columns = padded.reshape(len(padded) // LANES, LANES, -1, format.bits // 8).swapaxes(1, 2)
        return columns.reshape(-1)
    size, read = _READERS[kind]
    fields = read(padded.reshape(len(padded), -1, size))
    packed = [_by_lane(fields.scales, 2)]
    for part, width in ((fields.minima, 2), (fields.parts, 1), (fields.part_minima, 1)):
        if part is not None:
            packed.append(_by_lane(part, width))
    return np.concatenate([*packed, _pack_numbers(fields.numbers, format.bits)], axis=1).reshape(-1)


def _by_lane(part: Bytes, width: int) -> Bytes:
    """[rows, ...] -> [blocks, bytes], elements of `width` bytes of sixteen rows side by side, filled up with
    zeros to a multiple of 64."""
    lanes = part.reshape(len(part) // LANES, LANES, -1, width).swapaxes(1, 2)
    flat: Bytes = lanes.reshape(len(lanes), -1)
    return np.pad(flat, ((0, 0), (0, -flat.shape[1] % 64)))


def _pack_numbers(numbers: Bytes, bits: int) -> Bytes:
    """[rows, ...] -> [blocks, bytes]."""
    blocks = len(numbers) // LANES
    quads = numbers.reshape(blocks, LANES, -1, 8, 4).transpose(0, 2, 3, 1, 4)  # [blocks, groups, quad, 16, 4]
    if bits == 8:
        return quads.reshape(blocks, -1)
    planes = [quads[:, :, ::2] & 15 | quads[:, :, 1::2] << 4]
    if extra := bits - 4:
        # Quads that share a plane, each with its bits further up.
        high = (quads >> 4).reshape(blocks, -1, extra, 8 // extra, LANES, 4)
        high = high << np.arange(0, 8, extra, dtype=np.uint8)[:, None, None]
        planes.append(np.bitwise_or.reduce(high, axis=3))
    return np.concatenate(planes, axis=2).reshape(blocks, -1)


def dequantise(kind: str, rows: int, columns: int, packed: Bytes) -> Floats:
    """The matrix as float32 [rows, columns]."""
    format = FORMATS[kind]
    blocks = packed.reshape(-(-rows // LANES), -1)
    if format.holds_floats:
        return _to_float(kind, blocks).reshape(-1, columns, LANES).swapaxes(1, 2).reshape(-1, columns)[:rows]
    parts = _parts(blocks, columns, format)
    scales = next(parts)
    minima = next(parts) if format.minima else np.zeros_like(scales)
    if format.part:
        scales = scales.repeat(format.span // format.part, axis=1) * next(parts)
        minima = minima.repeat(format.span // format.part, axis=1) * (next(parts) if format.minima else 1)
    numbers = _unpack_numbers(next(parts), format.bits) - np.float32(format.offset)
    grouped = numbers.reshape(len(scales), -1, format.shared)
    weights: Floats = grouped * scales[..., None] + minima[..., None]
    return weights.reshape(-1, columns)[:rows]


def _parts(blocks: Bytes, columns: int, format: Format) -> Iterator[NDArray[Any]]:
    """The parts of packed blocks in order: scales, minima, their 8-bit parts as float32 [rows, each], and
    the numbers as bytes [blocks, each]."""
    at = 0
    halves = [np.float16] * (2 if format.minima else 1)
    parts = [np.int8] * len(halves) if format.part else []
    for dtype, share in [*((half, format.span) for half in halves), *((part, format.part) for part in parts)]:
        count = columns // share * LANES
        size = count * np.dtype(dtype).itemsize
        values = blocks[:, at : at + size].copy().view(dtype).astype(np.float32)
        yield values.reshape(len(blocks), -1, LANES).swapaxes(1, 2).reshape(len(blocks) * LANES, -1)
        at += -(-size // 64) * 64
    yield blocks[:, at : at + columns * LANES * format.bits // 8]


def _unpack_numbers(stored: Bytes, bits: int) -> Floats:
    """[blocks, bytes] -> [rows, columns]."""
    planes: NDArray[Any] = stored.reshape(len(stored), -1, bits, LANES, 4)
    if bits < 8:
        low = planes[:, :, :4, None]
        quads = np.concatenate([low & 15, low >> 4], axis=3).reshape(len(stored), -1, 8, LANES, 4)
        if extra := bits - 4:
            places = np.arange(0, 8, extra, dtype=np.uint8)[:, None, None]
            high = planes[:, :, 4:, None] >> places & ((1 << extra) - 1)
            quads = quads | high.reshape(quads.shape) << 4
        planes = quads
    rows: Floats = planes.transpose(0, 3, 1, 2, 4).reshape(len(stored) * LANES, -1).astype(np.float32)
    return rows


def _to_float(kind: str, stored: Bytes) -> Floats:
    if kind == "BF16":
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return stored.view(np.float16 if kind == "F16" else np.float32).astype(np.float32)
