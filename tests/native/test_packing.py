"""Packed weights are the file's own numbers, and every instruction set multiplies with them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from paceline.kernels import compiled, packing
from paceline.kernels.packing import FORMATS, TYPES, dequantise, pack
from paceline.kernels.reference import quantise
from paceline.targets.weights import aligned
from tests.native.models import random_blocks

assert compiled is not None, "these tests need the compiled kernels"


FUSED = [isa for isa in compiled.available() if isa != "portable"]
"""Instruction sets with fused multiply-adds."""


def dequantised(kind: str, raw: np.ndarray) -> np.ndarray:
    """The weights, by an independent implementation."""
    return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float32)


def multiply(isa: str, kind: str, packed: np.ndarray, rows: int, x: np.ndarray) -> np.ndarray:
    out = np.empty((len(x), -(-rows // 16) * 16), np.float32)
    compiled.Product(kind, rows, x.shape[1], packed, threads=1, isa=isa).multiply(x, out)
    return out[:, :rows]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "groups"), [(16, 1), (48, 18), (5, 2), (203, 3)])
def test_packing_keeps_every_weight(kind: str, rows: int, groups: int) -> None:
    columns = groups * FORMATS[kind].multiple
    raw = random_blocks(kind, rows, columns, np.random.default_rng(rows))
    packed = pack(kind, raw)
    assert packed.size == compiled.packed_bytes(kind, rows, columns)
    np.testing.assert_array_equal(dequantise(kind, rows, columns, packed), dequantised(kind, raw))


@pytest.mark.parametrize("kind", TYPES)
def test_a_large_matrix_is_packed_in_pieces(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = FORMATS[kind].multiple
    raw = random_blocks(kind, 75, columns, np.random.default_rng(0))
    whole = pack(kind, raw)
    monkeypatch.setattr(packing, "_ROWS_AT_ONCE", 32)
    np.testing.assert_array_equal(pack(kind, raw), whole)


def test_extreme_scales_and_numbers_are_kept() -> None:
    """Random blocks seldom hold subnormal halves, negative scales and the largest numbers at once."""
    rng = np.random.default_rng(3)
    for kind, format in FORMATS.items():
        if format.holds_floats:
            continue
        raw = random_blocks(kind, 16, format.span * 8, rng).reshape(16, 8, -1)
        half = raw.shape[-1] - 2 if kind == "Q6_K" else 0
        scales = np.array([0.0, -0.0, 6e-8, -6e-8, 65504, -65504, 1.0, -1.0], np.float16)
        raw[:, :, half : half + 2] = scales.view(np.uint8).reshape(8, 2)
        raw[:8, :, half + 2 if half == 0 else 0 : half or None] |= 0x0F
        raw[8:, :, 4 if half == 0 else 0 : half or None] = 0xFF
        raw = raw.reshape(16, -1)
        wanted = dequantised(kind, raw)
        finite = np.isfinite(wanted)
        found = dequantise(kind, 16, format.span * 8, pack(kind, raw))
        np.testing.assert_array_equal(found[finite], wanted[finite])
        assert finite.mean() > 0.5


@pytest.mark.parametrize("kind", TYPES)
def test_products_equal_those_of_the_rounded_activations(kind: str) -> None:
    rows, columns = 83, (3 if FORMATS[kind].part else 11) * FORMATS[kind].multiple
    rng = np.random.default_rng(0)
    raw = random_blocks(kind, rows, columns, rng)
    packed, weights = aligned(pack(kind, raw)), dequantised(kind, raw).astype(np.float64)
    for n in [1, 2, 3, 5, 12, 13, 16, 33]:
        spread = rng.lognormal(0, 2, (n, 1)).astype(np.float32)
        x = rng.standard_normal((n, columns)).astype(np.float32) * spread
        x[0, :64] = 0
        rounded = x if FORMATS[kind].holds_floats else quantise(x)
        wanted = rounded.astype(np.float64) @ weights.T
        size = np.abs(x).max(1, keepdims=True) * np.sqrt(columns) * np.abs(weights).max()
        assert np.abs(wanted / size).max() > 1e-3
        for isa in compiled.available():
            found = multiply(isa, kind, packed, rows, x)
            np.testing.assert_allclose(found / size, wanted / size, atol=2e-6, err_msg=isa)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if not FORMATS[kind].holds_floats])
def test_the_largest_numbers_do_not_overflow(kind: str) -> None:
    """Every activation at +-127 and every number at its end: what 16-bit sums of products must hold."""
    columns = FORMATS[kind].multiple
    raw = random_blocks(kind, 16, columns, np.random.default_rng(0))
    x = np.ones((3, columns), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    for fill in (0x00, 0x7F, 0x80, 0xFF):
        blocks = raw.reshape(16, columns // FORMATS[kind].span, -1).copy()
        middle = slice(0, 208) if kind == "Q6_K" else slice(4 if FORMATS[kind].minima else 2, None)
        blocks[:, :, middle] = fill
        filled = blocks.reshape(16, -1)
        wanted = quantise(x).astype(np.float64) @ dequantised(kind, filled).astype(np.float64).T
        for isa in compiled.available():
            found = multiply(isa, kind, aligned(pack(kind, filled)), 16, x)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4, err_msg=isa)


@pytest.mark.parametrize("isa", compiled.available())
@pytest.mark.parametrize("kind", TYPES)
def test_a_rows_product_does_not_depend_on_the_other_rows(isa: str, kind: str) -> None:
    rng = np.random.default_rng(5)
    columns = 2 * FORMATS[kind].multiple
    packed = aligned(pack(kind, random_blocks(kind, 48, columns, rng)))
    x = rng.standard_normal((40, columns)).astype(np.float32)
    alone = np.concatenate([multiply(isa, kind, packed, 48, row[None]) for row in x])
    for n in [*range(2, 20), 25, 33, 40]:
        np.testing.assert_array_equal(multiply(isa, kind, packed, 48, x[:n]), alone[:n])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n", [1, 7, 12, 29])
def test_instruction_sets_with_fused_multiply_adds_agree_to_the_bit(kind: str, n: int) -> None:
    rng = np.random.default_rng(1)
    columns = 2 * FORMATS[kind].multiple
    packed = aligned(pack(kind, random_blocks(kind, 64, columns, rng)))
    x = rng.standard_normal((n, columns)).astype(np.float32)
    results = [multiply(isa, kind, packed, 64, x) for isa in FUSED]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_type_without_a_kernel_and_rows_of_broken_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"type 'IQ4_XS' has no kernel; there are Q8_0, Q4_0, .*, F32"):
        compiled.packed_bytes("IQ4_XS", 16, 256)
    with pytest.raises(ValueError, match="Q4_K needs rows of a multiple of 256 columns, not 320"):
        compiled.packed_bytes("Q4_K", 16, 320)
    with pytest.raises(ValueError, match="F16 needs rows of a multiple of 32 columns, not 40"):
        compiled.packed_bytes("F16", 16, 40)
