"""Passes of a model of transformers that leave out some of its layers: these hand on what they get."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module, ModuleList


class Layers:
    """The layers of a model's decoder.

    count: how many there are, any of which a pass may leave out; 0 where that cannot be done
    """

    def __init__(self, model: Any, count: int) -> None:
        """count: layers that the model says it has."""
        lists = [part for part in model.get_decoder().modules() if isinstance(part, ModuleList)]
        self._layers: list[Module] = next((list(part) for part in lists if len(part) == count), [])
        self._fit: set[Module] = set()

    @property
    def count(self) -> int:
        """Known after a pass was watched."""
        return len(self._layers) if self._fit.issuperset(self._layers) else 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a pass of the model shows which layers make hidden states, and nothing else, of hidden
        states."""
        hooks = [layer.register_forward_hook(self._look) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(self, layer: Module, given: tuple[Any, ...], made: Any) -> None:
        if given and isinstance(made, Tensor) and made.shape == getattr(given[0], "shape", None):
            self._fit.add(layer)

    @contextmanager
    def without(self, skipped: Set[int]) -> Iterator[None]:
        """Inside, the model's passes leave out these layers, counted from 0."""
        layers = [self._layers[index] for index in sorted(skipped)]
        own = [vars(layer).get("forward") for layer in layers]  # of those that others have changed
        try:
            for layer in layers:
                vars(layer)["forward"] = _hand_on
            yield
        finally:
            for layer, forward in zip(layers, own, strict=True):
                if forward is None:
                    vars(layer).pop("forward", None)
                else:
                    vars(layer)["forward"] = forward


def _hand_on(states: Tensor, *_: Any, **__: Any) -> Tensor:
    return states
