"""Files of safetensors are read and written as the format says, and damaged ones refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ModelFileError
from paceline.models.bfloat16 import narrowed
from paceline.models.safetensors_file import read_safetensors, write_safetensors


def by_hand(path: Path, header: dict[str, Any], body: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_every_kind_of_numbers_is_read(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]])
    bfloat16 = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    parts = [
        values,
        values.astype("f4"),
        values.astype("f2"),
        bfloat16,
        np.array([-7, 8]),
        np.array([True, False]),
    ]
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for kind, part in zip(["F64", "F32", "F16", "BF16", "I64", "BOOL"], parts, strict=True):
        header[kind] = entry(kind, list(part.shape), len(body), len(body) + part.nbytes)
        body += part.tobytes()
    found = read_safetensors(by_hand(tmp_path / "a", header, body))
    for kind in ("F64", "F32", "F16", "BF16"):
        assert found[kind].dtype == np.float32
        np.testing.assert_array_equal(found[kind], values)
    assert found["I64"].tolist() == [-7, 8]
    assert found["BOOL"].tolist() == [True, False]


def test_what_is_written_reads_back_and_takes_half_the_room_where_it_can(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((3, 5), np.float32)
    short = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
    tensors = {
        "exact": exact,
        "short": short,
        "d2t": np.arange(4),
        "t2d": np.array([True, False]),
        "none": exact[:0],
    }
    path = tmp_path / "folder" / "model.safetensors"
    size, digest = write_safetensors(path, tensors | {"short": narrowed(short)})
    assert size == path.stat().st_size
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = read_safetensors(path)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    header = json.loads(path.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    assert header["exact"]["dtype"] == "F32"
    assert header["short"] == entry("BF16", [3, 5], 60, 90)
    with pytest.raises(ValueError, match="tensors of complex128 cannot be written"):
        write_safetensors(path, {"a": np.zeros(1, complex)})


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"a": entry("F32", [2], 0, 8)}, b"1234567", "the file is cut off: 7 bytes of tensors, 8 expected"),
        ({"a": entry("F32", [3], 0, 8)}, b"12345678", r"a tensor of shape \[3\] in 8 bytes"),
        ({"a": entry("F8_E4M3", [8], 0, 8)}, b"12345678", "numbers of kind 'F8_E4M3' are not supported"),
        ({"a": entry("F32", [-2], 0, -8)}, b"12345678", "is no place"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"12345678", "KeyError: 'data_offsets'"),
        ({"a": 5}, b"", "TypeError"),
    ],
)
def test_a_damaged_file_is_refused(header: dict[str, Any], body: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=f"is damaged: .*{message}"):
        read_safetensors(by_hand(tmp_path / "a", header, body))


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_safetensors(path, {"w": np.ones((2, 3), np.float32), "x": np.arange(3)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            read_safetensors(path)
    path.write_bytes(whole)
    assert len(read_safetensors(path)) == 2
    with pytest.raises(ModelFileError, match="nothing cannot be read"):
        read_safetensors(tmp_path / "nothing")
