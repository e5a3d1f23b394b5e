"""A DFlash 2 drafter on the CPU kernels: DFlash's pass with convolutions, and a selector.

Matrices are rounded to 8 bits as there; fixed kernels and what the selector keeps of each token are not.
`paceline.trained.dflash2_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paceline.kernels.packing import Embedding
from paceline.models.dflash2_folder import ABOVE, BELOW, CONVOLUTIONS, GATE, DFlash2Weights
from paceline.models.dflash_folder import DFlashWeights
from paceline.models.drafter_folder import Floats
from paceline.trained._fit import Product, product
from paceline.trained.dflash import Layer, NativeDFlash
from paceline.trained.dflash2_reference import convolved


class NativeDFlash2(NativeDFlash):
    """See `paceline.drafters._selector.SelectorModel`. Not for use from two threads at once."""

    def __init__(
        self,
        weights: DFlash2Weights,
        embedding: Embedding,
        head: Embedding,
        layers: int,
        *,
        cache_tokens: int,
    ) -> None:
        """See `NativeDFlash`. Raises IncompatibleDrafter."""
        super().__init__(weights, embedding, head, layers, cache_tokens=cache_tokens)
        found = weights.tensors
        self._candidates = weights.config.candidates
        self._gate, self._above, self._below = product(found[GATE]), found[ABOVE], found[BELOW]

    def _layer(self, weights: DFlashWeights, number: int) -> Layer:
        return _ConvolvedLayer(weights, number)

    def draft(self, slots: Sequence[int], tokens: Sequence[int]) -> tuple[NDArray[np.int64], Floats, Floats]:
        """What is drafted behind each sequence's next token: the candidates of each place, int64 [B, depths,
        K], their logits without the selector, float32 [B, depths, K], and what it reads there, float32
        [B, depths, rank]. The cache does not change."""
        read = self._denoised(slots, tokens)
        unary, shape = self._head(read), (len(slots), self.depths, -1)
        first = unary.shape[1] - self._candidates
        ids = np.argpartition(unary, first, axis=1)[:, first:]
        logits = np.take_along_axis(unary, ids, axis=1)
        return ids.reshape(shape), logits.reshape(shape), self._gate(read).reshape(shape)

    def edges(self, above: int, gate: Floats, ids: NDArray[np.int64]) -> Floats:
        """What the selector adds to the logits of candidates, int64 [K], behind a token: float32 [K]. gate:
        what it reads of their place, float32 [rank]."""
        added: Floats = self._below[ids] @ (self._above[above] * gate)
        return added


class _ConvolvedLayer(Layer):
    """With a convolution before and behind each part."""

    def __init__(self, weights: DFlashWeights, number: int) -> None:
        super().__init__(weights, number)
        at, found = f"layers.{number}.", weights.tensors
        self._block = weights.config.block
        self._convolutions: dict[str, tuple[Floats, Product]] = {
            name: (found[f"{at}{name}.base_kernel"], product(found[f"{at}{name}.kernel_projection.weight"]))
            for name in CONVOLUTIONS
        }

    def around(self, name: str, read: Floats, inner: Product) -> Floats:
        """See `Layer`."""
        base, project = self._convolutions[f"{name}_conv"]
        blocks = read.reshape(-1, self._block, read.shape[1])
        added = project(read).reshape(*blocks.shape[:2], *base.shape[:2], -1)
        mixed = convolved(blocks, base[0], added[:, :, 0]).reshape(read.shape)
        made = inner(np.ascontiguousarray(mixed)).reshape(blocks.shape)
        return convolved(made, base[1], added[:, :, 1]).reshape(read.shape)
