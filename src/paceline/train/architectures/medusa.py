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
from paceline.models.heads_folder import MOST, HeadsConfig
from paceline.train.architectures._base import Architecture
from paceline.train.batches import Batch
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 4, draft_vocab: int = 8192, layers: int = 1) -> Medusa:
    """Fresh Medusa heads.

    depths: heads, which is drafted tokens along one path. draft_vocab: tokens that they can propose, the most
    frequent ones. layers: of each block. Raises ConfigError.
    """
    return Medusa(config_of("medusa", teacher, depths, draft_vocab, layers), teacher)


def config_of(kind: str, teacher: Teacher, depths: int, draft_vocab: int, layers: int) -> HeadsConfig:
    """The shape of fresh heads for a target. Raises ConfigError for a value out of range."""
    for name, value in (("depths", depths), ("layers", layers)):
        if not 1 <= value <= MOST:
            raise ConfigError(f"{name} is {value}, allowed: 1 to {MOST}")
    return HeadsConfig(
        kind=kind,
        hidden=teacher.config.hidden,
        depths=depths,
        layers=layers,
        vocab_size=teacher.config.vocab_size,
        draft_vocab_size=min(draft_vocab, len(teacher.counts)),
        bias=False,
        shared=True,
    )


class Medusa(Architecture):
    """The heads."""

    def __init__(self, config: HeadsConfig, teacher: Teacher) -> None:
        super().__init__()
        self._config, self._teacher, self.depths = config, teacher, config.depths
        vocabulary = teacher.likeliest(config.draft_vocab_size)
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        self.blocks = nn.ModuleList([Block(config, depth) for depth in range(config.depths)])
        self.lm_heads = nn.ModuleList([nn.Linear(config.hidden, len(vocabulary), bias=False)])
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
        """A folder of heads, see `paceline.models.heads_folder`."""
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        return self._config.described, {**tensors, "token_map": self.vocabulary.cpu()}


class Block(nn.Module):
    """Linear layers with SiLU, each added to what it reads; it changes nothing at first."""

    def __init__(self, config: HeadsConfig, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(config.reads(depth, layer), config.hidden, bias=False)
                for layer in range(config.layers)
            ]
        )
        for layer in self.layers:
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        """[n, H] to [n, H]; the first layer also reads what stands beside, [n, H] each."""
        for layer in self.layers:
            x = x + functional.silu(layer(torch.cat((x, *beside), -1)))
            beside = ()
        return x
