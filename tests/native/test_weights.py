"""The packed weights on disk: made once, checked, and never in the way."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from paceline.errors import ModelFileError
from paceline.targets import weights as module
from paceline.targets.weights import load_weights, pack_gguf
from tests.conftest import WriteGguf


@pytest.fixture
def write_gguf(write_gguf: WriteGguf) -> WriteGguf:
    """Tiny files of types that have a kernel."""
    rng = np.random.default_rng(0)
    small = {
        name: (rng.normal(0, 0.1, shape).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        for name, shape in {"blk.0.attn_v.weight": (32, 64), "blk.0.ffn_gate.weight": (96, 64)}.items()
    }
    return lambda metadata=None, tensors=None: write_gguf(metadata, {**small, **(tensors or {})})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


def assert_equal(a: module.PackedWeights, b: module.PackedWeights) -> None:
    assert (a.config, a.tokenizer_json, list(a.tensors)) == (b.config, b.tokenizer_json, list(b.tensors))
    for x, y in zip(a.tensors.values(), b.tensors.values(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_second_load_reads_what_the_first_one_packed(
    write_gguf: WriteGguf, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf()
    first = load_weights(path)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(module, "pack_gguf", None)
    assert_equal(load_weights(path), first)


def test_every_damage_of_the_packed_file_is_found_and_mended(write_gguf: WriteGguf, cache: Path) -> None:
    path = write_gguf()
    wanted = load_weights(path)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for i in range(150):
        damaged = bytearray(whole)
        if i % 3:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        else:
            del damaged[rng.integers(len(whole)) :]
        file.write_bytes(damaged)
        assert_equal(load_weights(path), wanted)


def test_a_changed_model_file_is_packed_again(write_gguf: WriteGguf, cache: Path) -> None:
    path = write_gguf()
    load_weights(path)
    write_gguf({"general.name": "another"})
    assert load_weights(path).config.name == "another"
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    write_gguf: WriteGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "file"))
    path = write_gguf()
    assert_equal(load_weights(path), pack_gguf(path))


def test_a_damaged_model_file_leaves_nothing_in_the_cache(write_gguf: WriteGguf, cache: Path) -> None:
    path = write_gguf()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError):
        load_weights(path)
    assert not cache.exists() or not list(cache.iterdir())


def test_types_and_widths_without_a_kernel_are_refused(write_gguf: WriteGguf, cache: Path) -> None:
    with pytest.raises(ModelFileError, match=r"is F16, the kernels run Q8_0, Q4_0, Q4_1"):
        load_weights(write_gguf(tensors={"blk.0.attn_v.weight": np.zeros((32, 64), np.float16)}))
