"""The packed weights on disk: made once, checked, and never in the way."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from paceline.errors import ModelFileError
from paceline.kernels.packing import TYPES, dequantise
from paceline.models.gguf_file import TENSOR_TYPES
from paceline.targets import weights as module
from paceline.targets.weights import load_weights, pack_gguf
from tests.conftest import WriteGguf
from tests.native.models import random_blocks


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


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_tensor_keeps_the_type_and_the_weights_of_the_file(
    kind: str, write_gguf: WriteGguf, cache: Path
) -> None:
    weights = np.random.default_rng(0).normal(0, 0.1, (32, 64)).astype(np.float32)
    type = gguf.GGMLQuantizationType[kind]
    path = write_gguf(tensors={"blk.0.attn_v.weight": (weights, type)})
    for tensors in (load_weights(path).tensors, load_weights(path).tensors):  # packed, then from the cache
        assert tensors["blk.0.attn_v.weight.type"] == kind
        found = dequantise(kind, 32, 64, tensors["blk.0.attn_v.weight"])
        np.testing.assert_array_equal(found, gguf.dequantize(gguf.quants.quantize(weights, type), type))
        assert tensors["blk.0.attn_q.weight.type"] == "Q4_1"


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_types_of_superblocks_are_read_too(kind: str, write_gguf: WriteGguf, cache: Path) -> None:
    rng = np.random.default_rng(0)
    raw = random_blocks(kind, 64, 256, rng)
    wide = {
        name: (rng.normal(0, 0.1, (256, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q4_1)
        for name in ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")
    }
    path = write_gguf({"llama.feed_forward_length": 256}, {**wide, "blk.0.ffn_down.weight": (raw, kind)})
    found = dequantise(kind, 64, 256, load_weights(path).tensors["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(found, gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]))


def test_a_type_without_a_kernel_is_refused_with_the_types_that_run(
    write_gguf: WriteGguf, cache: Path
) -> None:
    path = write_gguf(tensors={"blk.0.attn_v.weight": (np.zeros((32, 36), np.uint8), "IQ4_NL")})
    with pytest.raises(ModelFileError) as caught:
        load_weights(path)
    assert "type IQ4_NL is not supported, expected one of F32, F16, Q4_0" in str(caught.value)
    for kind in TYPES:
        assert kind in str(caught.value)


def test_files_and_kernels_know_the_same_types() -> None:
    assert {type.name for type in TENSOR_TYPES.values()} == set(TYPES)
