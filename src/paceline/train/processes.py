"""Several processes that train one drafter, a GPU each, as `accelerate launch` and torchrun start them.

Each reads a share of a step's batches; gradients are added up, and every process takes the same step. The
loss of a batch is divided by what all batches of its step hold, so the sum is the gradient of one process
that reads them all, but for rounding. Files are written by the first.

Source: the data parallelism of Li et al., "PyTorch Distributed", 2020 (arXiv 2006.15704); accelerate sets it
up and carries the sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from paceline.errors import ConfigError

T = TypeVar("T")


class Processes:
    """Those that train together, seen from this one: alone where none were launched.

    index, count  this process's number, from 0, and how many there are
    device        "cpu" or "cuda", and where there are several the GPU of this one
    """

    def __init__(self, device: str) -> None:
        """device: of PyTorch. Raises ConfigError where several processes cannot use it."""
        self.index, self.count, self.device = 0, int(os.environ.get("WORLD_SIZE", "1")), device
        self._state: Any = None
        if self.count == 1:
            return
        if device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {device!r}, allowed for {self.count} processes: cpu, cuda")
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device 'cuda' cannot be used: PyTorch sees no GPU")
        if find_spec("accelerate") is None:
            raise ConfigError("several processes need accelerate: pip install accelerate")
        from accelerate import PartialState

        self._state = PartialState(cpu=device == "cpu")
        self.index, self.device = self._state.process_index, str(self._state.device)

    @property
    def first(self) -> bool:
        """Whether this one writes files and talks."""
        return self.index == 0

    @property
    def described(self) -> str:
        """The device, or devices, for people."""
        return self.device if self.count == 1 else f"{self.count} x {self.device.partition(':')[0]}"

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This one's part; each piece is in one part."""
        return work[self.index :: self.count]

    def add_up(self, weights: Iterable[Tensor]) -> None:
        """Make each gradient the sum of all processes' own; none where no process has one."""
        if self._state is None:
            return
        weights = list(weights)
        found = torch.tensor([float(weight.grad is not None) for weight in weights])
        found = self._sum(found.to(weights[0].device))
        held = [weight for weight, count in zip(weights, found.tolist(), strict=True) if count]
        for weight in held:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if held:
            gradients = [weight.grad for weight in held if weight.grad is not None]
            vector_to_parameters(self._sum(parameters_to_vector(gradients)), gradients)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of what all processes have."""
        if self._state is None:
            return list(values)
        sums: list[float] = self._sum(torch.tensor(values, device=self.device)).tolist()
        return sums

    def _sum(self, values: Tensor) -> Tensor:
        from accelerate.utils import reduce

        found: Tensor = reduce(values, "sum")
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self._state is not None:
            self._state.wait_for_everyone()
