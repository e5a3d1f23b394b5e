"""Logits that stay on a device, and drawing there: one read by the host for all tokens of a step.

The same laws and the same noise as on the host (`paceline.sampling.truncate`, `paceline.noise.gumbel`), for
many rows at a time. Integers are the same bits everywhere; a device's logarithm may round its last bit in
another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device, to_device
from numpy.typing import NDArray

from paceline.core import Array
from paceline.noise import gumbel_rows

if TYPE_CHECKING:
    from paceline.sampling import SamplingParams


class OnDevice:
    """Logits float [S, V] on a device. One row comes to the host when it is asked for by its number, as an
    array of NumPy's; several rows stay where they are, until NumPy is asked for an array of them."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.shape: tuple[int, int] = tuple(values.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            return _on_host(self.values[int(index)])
        if isinstance(index, slice):
            return OnDevice(self.values[index])
        xp = array_namespace(self.values)
        return OnDevice(xp.take(self.values, xp.asarray(index, device=device(self.values)), axis=0))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(_on_host(self.values), dtype)


def _on_host(values: Array) -> NDArray[Any]:
    return np.asarray(to_device(values, "cpu"))


def draw_all(
    logits: Array, params: Sequence[SamplingParams], keys: Sequence[int]
) -> tuple[list[int], list[bool]]:
    """The token that the target draws in each row of logits [S, V], and whether its logits were finite.

    params, keys: of each row; penalties, bias and masks are not applied. At temperature 0 it is the likeliest
    token, of equal ones the lowest id.
    """
    xp = array_namespace(logits)
    tokens = xp.argmax(logits, axis=1)
    if any(param.temperature for param in params):
        hot = _per_row([param.temperature > 0 for param in params], xp.bool, logits)[:, 0]
        warm = _per_row([param.temperature or 1.0 for param in params], xp.float64, logits)
        x = _truncated(xp.astype(logits, xp.float64) / warm, params)
        drawn = xp.argmax(x + gumbel_rows(keys, x), axis=1)
        tokens = xp.where(hot, drawn, tokens)
    sound = xp.isfinite(xp.max(logits, axis=1))
    read = _on_host(xp.stack((xp.astype(tokens, xp.int64), xp.astype(sound, xp.int64))))
    return read[0].tolist(), read[1].astype(bool).tolist()


def _truncated(x: Array, params: Sequence[SamplingParams]) -> Array:
    """-inf for what each row's top-k, top-p and min-p drop: `paceline.sampling.truncate`, row by row."""
    xp = array_namespace(x)
    if any(param.top_k or param.top_p < 1 for param in params):
        most = _per_row([min(param.top_k or x.shape[1], x.shape[1]) for param in params], xp.int64, x)
        order = xp.argsort(-x, axis=1, stable=True)
        ranks = xp.argsort(order, axis=1)
        ranked = xp.take_along_axis(x, order, axis=1)
        cumulative = xp.cumulative_sum(xp.exp(ranked - ranked[:, :1]), axis=1)
        total = xp.take_along_axis(cumulative, most - 1, axis=1)
        share = _per_row([param.top_p for param in params], xp.float64, x)
        below = (cumulative < share * total) & (xp.arange(x.shape[1], device=device(x))[None, :] < most)
        kept = xp.where(share < 1, xp.sum(xp.astype(below, xp.int64), axis=1, keepdims=True) + 1, most)
        x = xp.where(ranks < kept, x, -xp.inf)
    if any(param.min_p > 0 for param in params):
        least = _per_row([param.min_p for param in params], xp.float64, x)
        x = xp.where(xp.exp(x - xp.max(x, axis=1, keepdims=True)) < least, -xp.inf, x)
    return x


def _per_row(values: Sequence[Any], dtype: Any, like: Array) -> Array:
    """[S, 1] on the device of `like`."""
    xp = array_namespace(like)
    return xp.asarray(values, dtype=dtype, device=device(like))[:, None]
