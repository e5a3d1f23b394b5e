"""Low-rank adapters of an EAGLE-3 drafter: one for each task, small beside the drafter that stays as it is.

Every matrix inside of the drafter, W, becomes W + B A, with A [rank, columns] drawn and B [rows, rank] zero
at first; only these are trained, on the answers of one task. Embeddings, norms and head are the drafter's.
`paceline.train.tasks` puts the adapters of several tasks together.

Sources: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685); Ge et al.,
"Automatic Task Detection and Heterogeneous LLM Speculative Decoding", 2025 (arXiv 2505.08600), for one for
each task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.tasks_folder import adapter_form
from paceline.train.architectures import eagle3
from paceline.train.architectures._base import Architecture
from paceline.train.batches import Batch
from paceline.train.teacher import Teacher

OWN = "adapters."


def build(teacher: Teacher, *, depths: int = 5, draft_vocab: int = 8192, rank: int = 8) -> Lora:
    """Fresh adapters of an EAGLE-3 drafter, which --start-from names.

    depths: drafted tokens along one path that they are trained for. draft_vocab: the tokens that the drafter
    can propose. rank: of the adapters. Raises ConfigError.
    """
    if not 1 <= rank <= 256:
        raise ConfigError(f"rank is {rank}, allowed: 1 to 256")
    return Lora(eagle3.build(teacher, depths=depths, draft_vocab=draft_vocab), rank)


class Lora(Architecture):
    """A drafter with adapters. Its parameters are theirs alone."""

    adapts = True

    def __init__(self, base: eagle3.Eagle3, rank: int) -> None:
        super().__init__()
        self.depths = base.depths
        self.base = base.requires_grad_(False)
        self._adapted = [
            name for name, part in base.named_modules() if isinstance(part, nn.Linear) and name != "lm_head"
        ]
        self.adapters = nn.ModuleList([Adapter(base.get_submodule(name), rank) for name in self._adapted])

    @property
    def vocabulary(self) -> Tensor:
        """The drafter's."""
        return self.base.vocabulary

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`. The drafter's, which stays as it is."""
        return self.base.head

    @property
    def start(self) -> Mapping[str, Tensor]:
        """See `Architecture.start`."""
        return dict(self.base.named_parameters())

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapters' alone."""
        return (pair for pair in super().named_parameters(*args, **options) if pair[0].startswith(OWN))

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        yield from self.base(batch)

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Architecture.known_tokens`."""
        return self.base.known_tokens(tensors)

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of adapters, see `paceline.models.tasks_folder`."""
        tensors = {}
        for place, name in enumerate(self._adapted):
            for part in ("lora_A", "lora_B"):
                tensors[f"{name}.{part}.weight"] = weights[f"{OWN}{place}.{part}"].to(torch.bfloat16)
        return adapter_form(len(tensors["fc.lora_A.weight"])), tensors


class Adapter(nn.Module):
    """What is added to a linear layer's output. It begins as nothing."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(rank, layer.in_features) * layer.in_features**-0.5)
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank))
        layer.register_forward_hook(lambda _, given, out: out + self(given[0]))

    def forward(self, x: Tensor) -> Tensor:
        """[..., columns] to [..., rows]."""
        return functional.linear(functional.linear(x, self.lora_A), self.lora_B)
