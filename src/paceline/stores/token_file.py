"""The form of files that hold token ids: checked when read, whole or not there when written.

    8 bytes   MAGIC
    4         VERSION, little-endian as all numbers
    32        SHA-256 of all that follows
    4         length of the header
              the header, JSON: kind, vocabulary, model, arrays {name: [dtype, length]}, notes
              the arrays, in the header's order, each from a multiple of 64 bytes on

Token ids mean something with one tokenizer only, so a file names the one it was made with.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.core import TargetInfo
from paceline.errors import TokenFileError
from paceline.models.cache import write_atomically

MAGIC = b"PACETOKS"
VERSION = 1
_ALIGNMENT = 64
_START = struct.Struct("<8sI32s")
_LENGTH = struct.Struct("<I")


class DamagedFile(TokenFileError):
    """A file of ours that is cut short or changed."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """What such a file holds.

    kind        what it is, such as "datastore"
    vocabulary  fingerprint of the tokenizer, as in TargetInfo
    model       name of the model whose tokenizer that is, for people
    notes       what else its maker wanted to say, JSON-able
    arrays      {name: array of one dimension}
    """

    kind: str
    vocabulary: str
    model: str
    notes: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def write(self, path: Path) -> None:
        """Put it on disk. Raises TokenFileError."""
        header = {
            "kind": self.kind,
            "vocabulary": self.vocabulary,
            "model": self.model,
            "notes": self.notes,
            "arrays": {name: [array.dtype.str, len(array)] for name, array in self.arrays.items()},
        }
        text = json.dumps(header).encode()
        parts: list[Any] = [_LENGTH.pack(len(text)), text]
        at = _START.size + _LENGTH.size + len(text)
        for array in self.arrays.values():
            parts += [bytes(-at % _ALIGNMENT), np.ascontiguousarray(array).data.cast("B")]
            at += -at % _ALIGNMENT + array.nbytes
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        try:
            with write_atomically(path) as file:
                file.write(_START.pack(MAGIC, VERSION, digest.digest()))
                for part in parts:
                    file.write(part)
        except OSError as error:
            raise TokenFileError(f"{self.kind} {path}: {error.strerror or error}") from None

    @staticmethod
    def read(path: Path, kind: str) -> TokenFile:
        """What a file holds, after checking all of it; the arrays stay on disk and are mapped.

        Raises DamagedFile, and TokenFileError for a file that cannot be read or is something else.
        """
        what = f"{kind} {path}"
        try:
            if path.stat().st_size < _START.size + _LENGTH.size:
                raise TokenFileError(f"{what}: is no {kind} of Paceline's")
            data = np.memmap(path, np.uint8, "r")
        except OSError as error:
            raise TokenFileError(f"{what}: {error.strerror or error}") from None
        magic, version, digest = _START.unpack(data[: _START.size].tobytes())
        if magic != MAGIC:
            raise TokenFileError(f"{what}: is no {kind} of Paceline's")
        if version != VERSION:
            raise TokenFileError(
                f"{what}: has version {version}, this Paceline reads {VERSION}; make it anew"
            )
        if _sha256(data[_START.size :]) != digest:
            raise DamagedFile(f"{what}: is damaged or cut short, its checksum does not match; make it anew")
        # From here on all is as it was written.
        at = _START.size + _LENGTH.size
        (length,) = _LENGTH.unpack(data[_START.size : at].tobytes())
        header = json.loads(data[at : at + length].tobytes())
        if header["kind"] != kind:
            raise TokenFileError(f"{what}: holds {header['kind']}, expected {kind}")
        at += length
        arrays = {}
        for name, (dtype, count) in header.pop("arrays").items():
            at += -at % _ALIGNMENT
            arrays[name] = np.frombuffer(data, np.dtype(dtype), count, at)
            at += arrays[name].nbytes
        return TokenFile(**header, arrays=arrays)

    def check(self, path: Path, info: TargetInfo) -> None:
        """Raises TokenFileError if the file was made with another tokenizer than this target's."""
        if self.vocabulary != info.vocabulary:
            raise TokenFileError(
                f"{self.kind} {path}: was made with the tokenizer of {self.model}, which is not that of "
                f"{info.name}; make one for this model"
            )


def _sha256(data: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(data.data).digest()
