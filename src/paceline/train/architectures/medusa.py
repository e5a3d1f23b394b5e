"""Medusa: for each further token one small block behind the target's last hidden state, and one head for all.

Block k reads the hidden state that the target made its next token of, and predicts the token k places behind
that one, without knowing those between; all of a draft takes one pass.

Source: Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", 2024
(arXiv 2401.10774), with frozen target (Medusa-1). Names of tensors and settings: those that vLLM loads. The
head that all blocks share begins as the target's rows and is trained; the paper has one for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.train.architectures._base import Architecture
from paceline.train.batches import Batch
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 4, draft_vocab: int = 8192, layers: int = 1) -> Medusa:
    """Fresh Medusa heads.

    depths: heads, which is drafted tokens along one path. draft_vocab: tokens that they can propose, the most
    frequent ones. layers: of each block. Raises ConfigError.
    """
    for name, value in (("depths", depths), ("layers", layers)):
        if not 1 <= value <= 16:
            raise ConfigError(f"{name} is {value}, allowed: 1 to 16")
    return Medusa(teacher, depths, layers, teacher.likeliest(min(draft_vocab, len(teacher.counts))))


class Medusa(Architecture):
    """The heads."""

    def __init__(self, teacher: Teacher, depths: int, layers: int, vocabulary: Tensor) -> None:
        super().__init__()
        self._teacher, self.depths = teacher, depths
        hidden = teacher.config.hidden
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        self.blocks = nn.ModuleList([Block(hidden, layers) for _ in range(depths)])
        self.lm_heads = nn.ModuleList([nn.Linear(hidden, len(vocabulary), bias=False)])
        with torch.no_grad():
            self.lm_heads[0].weight.copy_(teacher.head.cpu()[vocabulary])

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`."""
        return self.lm_heads[0].weight

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        for depth, block in enumerate(self.blocks):
            yield block(self._teacher.last(batch.states[:, :, -1][batch.bases(depth)]))

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Architecture.known_tokens`."""
        return tensors["token_map"]

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of Medusa heads as vLLM has it."""
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        config = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": self._teacher.config.hidden,
            "num_heads": self.depths,
            "num_hidden_layers": len(self.blocks[0].layers),
            "vocab_size": self._teacher.config.vocab_size,
            "truncated_vocab_size": len(self.vocabulary),
            "medusa_fc_bias": False,
            "original_lm_head": True,
        }
        return config, {**tensors, "token_map": self.vocabulary.cpu()}


class Block(nn.Module):
    """Linear layers with SiLU, each added to what it reads; it changes nothing at first."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden, bias=False) for _ in range(layers)])
        for layer in self.layers:
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[n, H] to [n, H]."""
        for layer in self.layers:
            x = x + functional.silu(layer(x))
        return x
