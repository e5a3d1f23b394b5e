"""Reading GGUF files: everything is checked against the file before it is believed.

The file is mapped, not read; tensors are read-only views of it. Our own reader, because a start must be
fast (a vocabulary of 49,152 tokens and its merges take 0.1 s, gguf.GGUFReader needs 1.7 s) and because a
damaged file must end in one clear error, never in a huge allocation or a foreign exception.

Source: the GGUF specification (docs/gguf.md in the ggml repository), versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ModelFileError
from paceline.models.config import ROPE_FACTORS, ModelConfig, read_config
from paceline.models.metadata import Metadata
from paceline.models.vocabulary import Spec, read_tokenizer


class TensorType(NamedTuple):
    """How a tensor is stored: blocks of `weights` numbers in `bytes` bytes, float16 scales and minima at the
    byte offsets `halves`; or plain floats of the type `floats`."""

    name: str
    weights: int
    bytes: int
    halves: tuple[int, ...] = ()
    floats: str = ""


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4, floats="<f4"),
    1: TensorType("F16", 1, 2, floats="<f2"),
    2: TensorType("Q4_0", 32, 18, (0,)),
    3: TensorType("Q4_1", 32, 20, (0, 2)),
    6: TensorType("Q5_0", 32, 22, (0,)),
    7: TensorType("Q5_1", 32, 24, (0, 2)),
    8: TensorType("Q8_0", 32, 34, (0,)),
    12: TensorType("Q4_K", 256, 144, (0, 2)),
    13: TensorType("Q5_K", 256, 176, (0, 2)),
    14: TensorType("Q6_K", 256, 210, (208,)),
    30: TensorType("BF16", 1, 2, floats="<u2"),
}
"""The supported storage types by their number in the file."""

_OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file.

    name   as in the file, such as "blk.0.attn_q.weight"
    type   the name of one of TENSOR_TYPES
    shape  (rows, columns), or (columns,) for a vector
    data   a read-only view of the file: float32, float16 or (for BF16) the bits as uint16, of `shape`; or the
           raw blocks of a quantised tensor as uint8 [rows, bytes per row]
    """

    name: str
    type: str
    shape: tuple[int, ...]
    data: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model file that was read and found whole.

    tokenizer      the JSON-able tokenizer specification (paceline.models.vocabulary.Spec); its
                   `chat_template` is the file's
    """

    path: Path
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Spec


def read_gguf(path: str | Path) -> Checkpoint:
    """Map a GGUF file and check all of it: structure, sizes, hyper-parameters, tokenizer tables, names,
    types and shapes of the tensors, and that every scale and every float is finite.

    Raises ModelFileError naming the file, the field or tensor, what was found and what was expected.
    """
    path = Path(path)
    try:
        return _read(path, _map(path))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None


def _map(path: Path) -> mmap.mmap:
    try:
        if path.is_dir():
            raise ModelFileError("is a folder, expected a GGUF file")
        with path.open("rb") as file:
            if file.seek(0, 2) < 24:
                raise ModelFileError(f"holds {file.tell()} bytes, too few for a GGUF file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError("no such file") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _read(path: Path, data: mmap.mmap) -> Checkpoint:
    cursor = _Cursor(data)
    count, pairs = _header(cursor)
    metadata = _metadata(cursor, pairs)
    if metadata.integer("split.count", 0, 1 << 16, 0) > 1:
        raise ModelFileError("is one part of several, expected a GGUF file in one piece")
    config = read_config(metadata)
    tokenizer = read_tokenizer(metadata)
    if len(tokenizer["tokens"]) != config.vocab_size:
        raise ModelFileError(
            f"vocab_size: found {config.vocab_size}, expected the {len(tokenizer['tokens'])} listed tokens"
        )
    alignment = metadata.integer("general.alignment", 8, 1 << 20, 32)
    if alignment & (alignment - 1):
        raise ModelFileError(f"general.alignment: found {alignment}, expected a power of two")
    tensors = _tensors(cursor, count, alignment)
    config = replace(config, tied="output.weight" not in tensors)
    _check_shapes(config, tensors)
    for tensor in tensors.values():
        _check_finite(tensor)
    return Checkpoint(path, config, tensors, tokenizer)


class _Cursor:
    """Reads values one behind the other and never past the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes and return where they start."""
        at = self.at
        if size > len(self.data) - at:
            raise ModelFileError(
                f"ends inside {what}: {size} bytes expected from byte {at}, the file holds {len(self.data)}"
            )
        self.at = at + size
        return at

    def scalar(self, layout: str, what: str) -> Any:
        return struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout), what))[0]

    def string(self, what: str) -> str:
        size = self.scalar("<Q", what)
        at = self.take(size, what)
        try:
            return self.data[at : at + size].decode()
        except UnicodeDecodeError:
            raise ModelFileError(f"{what}: is not valid UTF-8") from None

    def strings(self, count: int, what: str) -> list[str]:
        """As `string`, many times over: a vocabulary has to be read fast."""
        self._fits(count, 8, what)
        data, at, end, unpack = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        texts = []
        try:
            for _ in range(count):
                (size,) = unpack(data, at)
                start, at = at + 8, at + 8 + size
                if at > end:
                    raise ModelFileError(f"ends inside {what}")
                texts.append(data[start:at].decode())
        except struct.error:
            raise ModelFileError(f"ends inside {what}") from None
        except UnicodeDecodeError:
            raise ModelFileError(f"{what}: entry {len(texts)} is not valid UTF-8") from None
        self.at = at
        return texts

    def value(self, kind: int, what: str) -> Any:
        """A metadata value of the type numbered `kind`."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            raise ModelFileError(f"{what}: has value type {kind}, expected 0 to 12")
        inner, count = self.scalar("<I", what), self.scalar("<Q", what)
        if inner == _STRING:
            return self.strings(count, what)
        if inner not in _SCALARS:
            raise ModelFileError(f"{what}: is a list of value type {inner}, expected numbers or strings")
        dtype = np.dtype(_SCALARS[inner])
        self._fits(count, dtype.itemsize, what)
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize, what))

    def _fits(self, count: int, size: int, what: str) -> None:
        if count > (len(self.data) - self.at) // size:
            raise ModelFileError(f"{what}: lists {count} entries, more than the file can hold")


def _header(cursor: _Cursor) -> tuple[int, int]:
    """The number of tensors and of key/value pairs."""
    cursor.take(4, "the header")
    magic = cursor.data[:4]
    if magic != b"GGUF":
        raise ModelFileError(f"starts with {magic!r}, expected b'GGUF'")
    version = cursor.scalar("<I", "the header")
    if version not in (2, 3):
        raise ModelFileError(f"has GGUF version {version}, expected 2 or 3, little-endian")
    return cursor.scalar("<Q", "the header"), cursor.scalar("<Q", "the header")


def _metadata(cursor: _Cursor, pairs: int) -> Metadata:
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.string("a metadata key")
        if key in values:
            raise ModelFileError(f"metadata key {key[:60]!r} is given twice")
        values[key] = cursor.value(cursor.scalar("<I", key[:60]), key[:60])
    return Metadata(values)


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, Tensor]:
    """The tensors, each a view of its own part of the file."""
    entries: dict[str, tuple[TensorType, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = cursor.string("a tensor name")
        shown = f"tensor {name[:60]!r}"
        if len(name) > 127:
            raise ModelFileError(f"{shown}: has a name of {len(name)} characters, expected up to 127")
        if name in entries:
            raise ModelFileError(f"{shown}: is listed twice")
        dimensions = cursor.scalar("<I", shown)
        if not 1 <= dimensions <= 2:
            raise ModelFileError(f"{shown}: has {dimensions} dimensions, expected 1 or 2")
        # The file lists the fastest-running dimension first.
        shape = tuple(cursor.scalar("<Q", shown) for _ in range(dimensions))[::-1]
        number = cursor.scalar("<I", shown)
        if number not in TENSOR_TYPES:
            found = _OTHER_TYPES.get(number, f"number {number}")
            known = ", ".join(type.name for type in TENSOR_TYPES.values())
            raise ModelFileError(f"{shown}: type {found} is not supported, expected one of {known}")
        entries[name] = TENSOR_TYPES[number], shape, cursor.scalar("<Q", shown)

    base = -(-cursor.at // alignment) * alignment
    end, tensors = base, {}
    for name, (type, shape, offset) in sorted(entries.items(), key=lambda entry: entry[1][2]):
        start, columns = base + offset, shape[-1]
        row_bytes = columns // type.weights * type.bytes
        size = prod(shape[:-1]) * row_bytes
        if columns % type.weights or not size:
            raise ModelFileError(
                f"tensor {name!r}: has shape {shape}, expected rows of whole blocks of {type.weights}"
            )
        if start < end or offset % alignment:
            raise ModelFileError(f"tensor {name!r}: starts at byte {start}, inside another part of the file")
        if start + size > len(cursor.data):
            raise ModelFileError(
                f"tensor {name!r}: ends at byte {start + size}, the file holds {len(cursor.data)}; "
                "it is truncated or damaged, fetch it again"
            )
        end = start + size
        raw = np.frombuffer(cursor.data, np.uint8, size, start)
        view = raw.view(type.floats).reshape(shape) if type.floats else raw.reshape(-1, row_bytes)
        tensors[name] = Tensor(name, type.name, shape, view)
    return {name: tensors[name] for name in entries}


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this config has, with its shape; Llamas may also have ROPE_FACTORS."""
    hidden, wide, narrow = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, hidden),
        "output_norm.weight": (hidden,),
    }
    if not config.tied:
        shapes["output.weight"] = (config.vocab_size, hidden)
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (wide, hidden),
        "attn_k": (narrow, hidden),
        "attn_v": (narrow, hidden),
        "attn_output": (hidden, wide),
        "ffn_norm": (hidden,),
        "ffn_gate": (config.ffn, hidden),
        "ffn_up": (config.ffn, hidden),
        "ffn_down": (hidden, config.ffn),
    }
    if config.head_norms:
        block |= {"attn_q_norm": (config.head_dim,), "attn_k_norm": (config.head_dim,)}
    if config.post_norms:
        block |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
    biases = {"attn_q": wide, "attn_k": narrow, "attn_v": narrow} if config.bias else {}
    for layer in range(config.layers):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
        shapes |= {f"blk.{layer}.{name}.bias": (width,) for name, width in biases.items()}
    return shapes


def _check_shapes(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    shapes = _shapes(config)
    if config.architecture == "llama" and ROPE_FACTORS in tensors:
        shapes[ROPE_FACTORS] = (config.head_dim // 2,)
        if (tensors[ROPE_FACTORS].data <= 0).any():
            raise ModelFileError(f"tensor {ROPE_FACTORS!r}: holds a factor that is not above 0")
    for name, shape in shapes.items():
        if name not in tensors:
            raise ModelFileError(f"tensor {name!r}: missing, expected shape {shape}")
        found = tensors[name]
        if found.shape != shape:
            raise ModelFileError(f"tensor {name!r}: has shape {found.shape}, expected {shape}")
        if len(shape) == 1 and found.type != "F32":
            raise ModelFileError(f"tensor {name!r}: has type {found.type}, expected F32 for a vector")
    for name in tensors:
        # A bias that went unused would give another model's answers.
        if name not in shapes:
            raise ModelFileError(
                f"tensor {name[:60]!r}: is not known to architecture {config.architecture!r}"
            )


_HALF_EXPONENT, _BFLOAT_EXPONENT = 0x7C00, 0x7F80
"""The exponent bits of a float16 and of a bfloat16: all set for infinities and NaN."""


def _check_finite(tensor: Tensor) -> None:
    type = next(kind for kind in TENSOR_TYPES.values() if kind.name == tensor.type)
    if tensor.type == "F32":
        good = all(
            np.isfinite(rows).all() for rows in np.array_split(tensor.data, 1 + tensor.data.size // 10**7)
        )
    elif type.floats:
        exponent = _BFLOAT_EXPONENT if tensor.type == "BF16" else _HALF_EXPONENT
        good = not _holds_exponent(tensor.data.view("<u2"), exponent)
    else:
        names = [str(offset) for offset in type.halves]
        fields = {
            "names": names,
            "formats": ["<u2"] * len(names),
            "offsets": list(type.halves),
            "itemsize": type.bytes,
        }
        blocks = tensor.data.view(np.dtype(fields))  # type: ignore[call-overload]
        good = not any(_holds_exponent(blocks[name], _HALF_EXPONENT) for name in names)
    if not good:
        raise ModelFileError(f"tensor {tensor.name!r}: holds a scale or number that is not finite")


def _holds_exponent(bits: NDArray[Any], exponent: int) -> bool:
    return bool((bits & exponent == exponent).any())
