"""Packed weights are the file's own numbers, and every instruction set multiplies with them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from paceline.kernels import compiled
from paceline.kernels.packing import TYPES, dequantise, pack
from paceline.kernels.reference import quantise
from paceline.targets.weights import aligned
from tests.native.models import random_blocks

assert compiled is not None, "these tests need the compiled kernels"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (48, 576), (5, 64), (203, 96)])
def test_packing_keeps_every_weight(kind: str, rows: int, columns: int) -> None:
    raw = random_blocks(kind, rows, columns, np.random.default_rng(rows))
    wanted = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    packed = pack(kind, raw)
    assert packed.size == compiled.packed_bytes(kind, rows, columns)
    np.testing.assert_array_equal(dequantise(kind, rows, columns, packed), wanted)


@pytest.mark.parametrize("isa", compiled.available())
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 13, 33])
def test_products_equal_those_of_the_rounded_activations(isa: str, kind: str, n: int) -> None:
    rng = np.random.default_rng(n)
    rows, columns = 83, 352
    raw = random_blocks(kind, rows, columns, rng)
    x = rng.standard_normal((n, columns)).astype(np.float32) * rng.lognormal(0, 2, (n, 1)).astype(np.float32)
    x[0, :64] = 0
    out = np.empty((n, 96), np.float32)
    compiled.multiply(kind, rows, columns, aligned(pack(kind, raw)), x, out, isa)
    weights = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float64)
    wanted = quantise(x).astype(np.float64) @ weights.T
    size = np.abs(x).max(1, keepdims=True) * np.sqrt(columns) * np.abs(weights).max()
    np.testing.assert_allclose(out[:, :rows] / size, wanted / size, atol=2e-6)
    assert np.abs(wanted / size).max() > 1e-3


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n", [1, 7, 12, 29])
def test_instruction_sets_with_fused_multiply_adds_agree_to_the_bit(kind: str, n: int) -> None:
    isas = [isa for isa in compiled.available() if isa != "portable"]
    rng = np.random.default_rng(1)
    packed = aligned(pack(kind, random_blocks(kind, 64, 256, rng)))
    x = rng.standard_normal((n, 256)).astype(np.float32)
    results = []
    for isa in isas:
        results.append(np.empty((n, 64), np.float32))
        compiled.multiply(kind, 64, 256, packed, x, results[-1], isa)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
