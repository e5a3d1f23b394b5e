"""Whether a trained drafter fits a target and our kernels, and its matrices on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from paceline import kernels
from paceline.errors import IncompatibleDrafter
from paceline.kernels.packing import GROUP, Embedding, dequantise, pack, quantise_weights
from paceline.targets.weights import aligned

Floats = NDArray[np.float32]
Product = Callable[[Floats], Floats]

TYPE = "Q8_0"
"""Weights are rounded to."""

REMEMBERED = 4096
"""Embeddings of so many tokens are kept unpacked."""


def check_target(vocab_size: int, hidden: int, embedding: Embedding) -> None:
    """Raise IncompatibleDrafter unless the target whose embeddings these are has so many tokens, and hidden
    states so wide."""
    for what, own, targets in (
        ("tokens", vocab_size, embedding.vocab_size),
        ("wide hidden states", hidden, embedding.hidden),
    ):
        if own != targets:
            raise IncompatibleDrafter(
                f"the drafter was trained for a target of {own} {what}, this one has {targets}"
            )


def check_widths(widths: Mapping[str, int]) -> None:
    """Raise IncompatibleDrafter naming a width that the kernels do not take."""
    for what, width in widths.items():
        if width % GROUP:
            raise IncompatibleDrafter(
                f"the drafter's {what} is {width}, the kernels need a multiple of {GROUP}"
            )


def product(matrix: Floats, threads: int = 1, kind: str = TYPE) -> Product:
    """From rows [n, columns] to their products with a matrix [rows, columns], [n, rows]. kind: what it is
    rounded to."""
    rows, columns = matrix.shape
    return kernels.product(kind, rows, columns, aligned(pack(kind, quantise_weights(matrix, kind))), threads)


def head_rows(head: Embedding, token_ids: NDArray[np.int64]) -> Product:
    """What multiplies by the target's head, or by those rows of it: [n, hidden] to [n, D]."""
    if np.array_equal(token_ids, np.arange(head.vocab_size)):
        return kernels.product(head.type, head.vocab_size, head.hidden, head.packed)
    return product(dequantise(head.type, head.vocab_size, head.hidden, head.packed)[token_ids])
