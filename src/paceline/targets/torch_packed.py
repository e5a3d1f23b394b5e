"""Weights of linear layers once more, as a CPU's 16-bit kernels read them.

PyTorch hands a weight to oneDNN as it lies, which lays it out anew for every product: with few rows that is a
third of the time. Here it is laid out once. The products' bits are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

ROWS = 16
"""The layout is for calls of about so many rows; it takes any number."""
SHARE = 4
"""It is done if the weights fit so many times into the machine's memory."""


class Packed:
    """The linear layers of a model on a CPU in 16 bits, with their weights laid out a second time; of other
    models, of large ones and where PyTorch has no oneDNN, none (`layers` says how many).

    Layers whose class or `forward` is not PyTorch's own are left alone. A weight that changed since is laid
    out again, unless it was changed behind PyTorch's back (`weight.data`).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        size = sum(weight.nbytes for weight in model.parameters())
        fits = size * SHARE <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._layers = [_Layer(module) for module in model.modules() if _packs(module)] if fits else []

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self._layers)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, the model's layers use them."""
        for layer in self._layers:
            layer.begin()
        try:
            yield
        finally:
            for layer in self._layers:
                layer.end()


class _Layer:
    """One layer. `forward` is set on the module itself, so that its hooks go on working."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._own = vars(module)
        self._seen: tuple[int, int, int] | None = None
        self._forward: Any = None

    def begin(self) -> None:
        parameters = self._own["_parameters"]
        weight, bias = parameters["weight"], parameters["bias"]
        seen = (id(weight), weight.data_ptr(), weight._version)
        if seen != self._seen:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
            self._forward, self._seen = partial(_product, packed, bias), seen
        self._own["forward"] = self._forward

    def end(self) -> None:
        self._own.pop("forward", None)


def _product(packed: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
    """values [..., in] times a weight [out, in], plus bias [out]: what `torch.nn.Linear` computes."""
    return torch.ops.mkldnn._linear_pointwise(values, packed, bias, "none", [], "")


def _packs(module: torch.nn.Module) -> bool:
    if type(module) is not torch.nn.Linear or "forward" in vars(module):
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    weight = module.weight
    return (
        type(weight.data) is Tensor  # a quantised one calls itself what it stands for
        and weight.device.type == "cpu"
        and not weight.is_inference()  # such a weight does not say when it changes
        and (
            (weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
            or (weight.dtype is torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported())
        )
    )
