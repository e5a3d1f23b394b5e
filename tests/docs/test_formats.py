"""docs/formats.md is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.kernels import compiled
from paceline.kernels.packing import FORMATS
from paceline.models.gguf_file import TENSOR_TYPES

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    lines = PAGE[PAGE.index(f"| {heading} |") :].splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:end]]


def test_every_type_is_listed_with_the_room_it_takes() -> None:
    files = {type.name: type.bytes * 8 / type.weights for type in TENSOR_TYPES.values()}
    listed = {row[0]: row for row in table("type")}
    assert set(listed) == set(FORMATS) == set(files)
    for kind, (_, _, activations, in_file, in_memory) in listed.items():
        assert activations == ("float32" if FORMATS[kind].holds_floats else "8 bits")
        assert float(in_file) == files[kind]
        if compiled is not None:
            assert float(in_memory) == compiled.packed_bytes(kind, 1024, 8192) * 8 / (1024 * 8192)


def test_every_instruction_set_is_listed() -> None:
    if compiled is None:
        pytest.skip("needs the compiled kernels")
    listed = [row[0].strip("`") for row in table("name")]
    assert [name for name in listed if name in compiled.available()] == compiled.available()
