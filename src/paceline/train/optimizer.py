"""The optimiser: Muon for the matrices inside of a drafter, AdamW for those with a row for each token, such
as its head, and for what is no matrix, such as its norms.

On drafters of this size Muon learns more than AdamW from the same tokens (docs/log.md).

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; its steps are made as
long as AdamW's, so that one learning rate serves both: Liu et al., "Muon is Scalable for LLM Training", 2025
(arXiv 2502.16982); Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017 (arXiv 1711.05101).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paceline.train.architectures._base import Architecture

_BETAS = (0.9, 0.95)
_MOMENTUM = 0.95


class Optimizer:
    """Steps for all parameters of a drafter. weight_decay: of its matrices."""

    def __init__(self, drafter: Architecture, weight_decay: float) -> None:
        self._named = dict(drafter.named_parameters())
        outer = {id(weight) for weight in drafter.outer}
        inner = [weight for weight in self._named.values() if weight.ndim == 2 and id(weight) not in outer]
        vectors = [weight for weight in self._named.values() if weight.ndim != 2]
        groups = [(drafter.outer, weight_decay), (vectors, 0.0)]
        others = [{"params": weights, "weight_decay": decay} for weights, decay in groups if weights]
        self._parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, betas=_BETAS)] if others else []
        if inner:
            muon = torch.optim.Muon(
                inner, weight_decay=weight_decay, momentum=_MOMENTUM, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)

    def step(self, rate: float) -> None:
        """Change the parameters by their gradients, and forget these. rate: the learning rate."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Its moments, by kind and parameter; zero before the first step."""
        state: dict[str, Tensor] = {}
        for part in self._parts:
            kinds = _kinds(part)
            for name, weight in self._of(part).items():
                held = part.state.get(weight, {})
                state |= {f"{kind}/{name}": held.get(kind, torch.zeros_like(weight)) for kind in kinds}
        return state

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Go on from such moments, `step` steps behind the start."""
        for part in self._parts:
            kinds = _kinds(part)
            for name, weight in self._of(part).items():
                part.state[weight] = {
                    kind: tensors[f"{kind}/{name}"].to(weight.device, weight.dtype) for kind in kinds
                }
                if isinstance(part, torch.optim.AdamW):
                    part.state[weight]["step"] = torch.tensor(float(step))

    def _of(self, part: torch.optim.Optimizer) -> dict[str, Tensor]:
        own = {id(weight) for group in part.param_groups for weight in group["params"]}
        return {name: weight for name, weight in self._named.items() if id(weight) in own}


def _kinds(part: torch.optim.Optimizer) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq") if isinstance(part, torch.optim.AdamW) else ("momentum_buffer",)
