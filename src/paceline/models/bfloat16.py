"""bfloat16 numbers, which NumPy does not have: uint16, the upper halves of the bits of float32 numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 numbers, of two equally near ones the even; not for NaN."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def to_float32(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The same numbers as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: NDArray[np.float32]) -> NDArray[Any]:
    """bfloat16 where that loses nothing, else the numbers as they are."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return values if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)
