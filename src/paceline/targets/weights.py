"""Packed weights: made once from a model file, kept on disk, read back in a fraction of a second.

The file: 8 bytes magic, uint64 length of a JSON header, uint64 CRC of all that follows, the header, then the
tensors, each at a multiple of 64 bytes. The header holds the config, the tokenizer and the place of every
tensor.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ConfigError, ModelFileError
from paceline.kernels.packing import GROUP, Bytes, pack, quantise_weights
from paceline.models.cache import cache_dir, write_atomically
from paceline.models.config import ROPE_FACTORS, ModelConfig
from paceline.models.llama_folder import LlamaWeights, gguf_name

MAGIC = b"PACELN03"
_ALIGNMENT = 64
_PREFIX = 24


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """A model, ready for the kernels.

    tensors  for every matrix its packed bytes and under NAME.type its weight type; for every norm its
             float32 bytes; all uint8, at addresses that are multiples of 64
    """

    config: ModelConfig
    tokenizer_json: str
    tensors: Mapping[str, Any]

    @property
    def shape(self) -> dict[str, Any]:
        """The numbers of the config, as the kernels take them."""
        numbers = {key: value for key, value in asdict(self.config).items() if not isinstance(value, str)}
        return {**numbers, "outputs": self.config.vocab_size, "takes_features": False}

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Rotary frequencies float64 [2, head_dim/2]: of layers that see all, and of layers with a window."""
        config = self.config
        exponents = -np.arange(0, config.head_dim, 2) / config.head_dim
        everywhere = config.rope_theta**exponents / config.rope_scaling
        if ROPE_FACTORS in self.tensors:
            everywhere = everywhere / self.tensors[ROPE_FACTORS].view(np.float32)
        local = config.window_rope_theta**exponents if config.window_rope_theta else everywhere
        return np.stack([everywhere, local])

    def first(self, layers: int) -> PackedWeights:
        """The same model with its first layers alone. Raises ConfigError if it has fewer."""
        if not 1 <= layers <= self.config.layers:
            raise ConfigError(f"layers is {layers}, and {self.config.name} has 1 to {self.config.layers}")
        kept = {
            name: part
            for name, part in self.tensors.items()
            if not name.startswith("blk.") or int(name.split(".")[1]) < layers
        }
        return PackedWeights(replace(self.config, layers=layers), self.tokenizer_json, kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self.tensors.values() if isinstance(part, np.ndarray))


def load_weights(path: Path) -> PackedWeights:
    """The packed weights of a GGUF file, from the cache on disk if it holds them, else packed now and kept.

    A cache that cannot be written is no error: the weights are then packed again at the next start.
    Raises ModelFileError if the file is missing, damaged or not supported.
    """
    cached = _cache_path(path)
    if cached is not None and cached.exists():
        try:
            return _read(cached)
        except (ModelFileError, OSError):
            pass  # a damaged cache entry is made again from the file itself
    weights = pack_gguf(path)
    if cached is not None:
        _write(cached, weights)
    return weights


def pack_gguf(path: Path) -> PackedWeights:
    """Read a GGUF file and pack its weights.

    Raises ModelFileError if it is damaged or holds what the kernels cannot run.
    """
    from paceline.models.gguf_file import read_gguf

    checkpoint = read_gguf(path)
    config = checkpoint.config
    _check_widths(path, config)
    tensors: dict[str, Any] = {}
    for name, tensor in checkpoint.tensors.items():
        data = tensor.data if config.rope_interleaved else _interleave(name, tensor.data, config.head_dim)
        if len(tensor.shape) == 1:
            tensors[name] = aligned(np.ascontiguousarray(data, np.float32).view(np.uint8))
        else:
            tensors[name] = aligned(pack(tensor.type, data.view(np.uint8)))
            tensors[name + ".type"] = tensor.type
    return PackedWeights(config, json.dumps(checkpoint.tokenizer), tensors)


def pack_llama(path: Path, model: LlamaWeights) -> PackedWeights:
    """The weights of a model of Llama's form without a tokenizer, matrices rounded to 8 bits with a scale per
    32, Q8_0. path: where they are from. Raises ModelFileError for widths that the kernels do not take."""
    config = model.config
    _check_widths(path, config)
    tensors: dict[str, Any] = {}
    for own, data in model.tensors.items():
        name = gguf_name(own)
        data = _interleave(name, data, config.head_dim)
        if data.ndim == 1:
            tensors[name] = aligned(data.view(np.uint8))
        else:
            tensors[name] = aligned(pack("Q8_0", quantise_weights(data)))
            tensors[name + ".type"] = "Q8_0"
    return PackedWeights(config, "", tensors)


def _check_widths(path: Path, config: ModelConfig) -> None:
    for what, value in (
        ("embedding_length", config.hidden),
        ("head width", config.head_dim),
        ("feed_forward_length", config.ffn),
    ):
        if value % GROUP:
            raise ModelFileError(f"{path}: {what} is {value}, the kernels need a multiple of {GROUP}")


def _interleave(name: str, data: NDArray[Any], head_dim: int) -> NDArray[Any]:
    return interleave(data, head_dim) if name.split(".")[-2].startswith(("attn_q", "attn_k")) else data


def interleave(data: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of queries or keys in the order of the kernels, which rotate neighbours (2i, 2i+1), where the file
    has pairs (i, i + head_dim/2). Scores do not change: both are put in the same order."""
    heads = data.reshape(-1, 2, head_dim // 2, *data.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(data.shape)


def halves(data: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """The inverse of `interleave`."""
    heads = data.reshape(-1, head_dim // 2, 2, *data.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(data.shape)


def aligned(data: Bytes) -> Bytes:
    """A copy that starts at a multiple of 64."""
    out = _room(data.size)
    out[:] = data
    return out


def _room(size: int) -> Bytes:
    """Memory that starts at a multiple of 64."""
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size]


def _cache_path(path: Path) -> Path | None:
    """Where the packed form of this very file (path, size, time of change) lies; None for no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{MAGIC!r}"
    return (
        cache_dir() / "packed" / f"{path.stem[:80]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.bin"
    )


def _write(path: Path, weights: PackedWeights) -> None:
    parts: list[Any] = []
    places, at = {}, 0
    for name, part in weights.tensors.items():
        if isinstance(part, np.ndarray):
            places[name] = {"at": at, "bytes": part.nbytes, "type": weights.tensors.get(name + ".type")}
            parts += [part, bytes(-part.nbytes % _ALIGNMENT)]
            at += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
    contents = {"config": weights.config.to_json(), "tokenizer": weights.tokenizer_json, "tensors": places}
    header = json.dumps(contents).encode()
    header += b" " * (-(_PREFIX + len(header)) % _ALIGNMENT)
    crc = zlib.crc32(header)
    for part in parts:
        crc = zlib.crc32(part, crc)
    try:
        with write_atomically(path) as file:
            file.write(MAGIC + len(header).to_bytes(8, "little") + crc.to_bytes(8, "little") + header)
            for part in parts:
                file.write(part)
    except OSError:
        pass  # a full or read-only disk costs the next start a second, nothing else


def _read(path: Path) -> PackedWeights:
    size = path.stat().st_size
    data = _room(size)
    with path.open("rb") as file:
        if file.readinto(data.data) != size or bytes(data[:8]) != MAGIC:
            raise ModelFileError(f"{path} is not a file of packed weights")
    length, crc = (int.from_bytes(data[at : at + 8].tobytes(), "little") for at in (8, 16))
    if zlib.crc32(data[_PREFIX:].data) != crc or length > size:
        raise ModelFileError(f"{path} is damaged")
    header = json.loads(data[_PREFIX : _PREFIX + length].tobytes())
    body = data[_PREFIX + length :]
    tensors: dict[str, Any] = {}
    for name, place in header["tensors"].items():
        tensors[name] = body[place["at"] : place["at"] + place["bytes"]]
        if place["type"]:
            tensors[name + ".type"] = place["type"]
    return PackedWeights(ModelConfig.from_json(header["config"]), header["tokenizer"], tensors)
