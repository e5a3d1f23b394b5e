"""Compiled kernels: `draw` is the fused sampler, or None where it was not built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

draw: Callable[[NDArray[Any], float, int, float, float, int], int] | None = None
