"""Pads: embeddings that the target reads in place of the tokens that nobody knows yet.

Pad k stands k places behind the last token whose hidden states are known and sees the text and the pads
before it; what the target's frozen layers make of it, its head turns into the law of the token behind.
Nothing else is trained.

Sources: Monea et al., "PaSS: Parallel Speculative Sampling", 2023 (arXiv 2311.13581); Chen et al.,
"Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference", 2024 (arXiv
2405.18628), for learning from the target's law.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paceline.errors import ConfigError
from paceline.models.pads_folder import MOST, PadsConfig
from paceline.train.architectures._base import Architecture
from paceline.train.batches import Batch
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 3, draft_vocab: int = 8192) -> Pads:
    """Fresh pads.

    depths: pads, which is drafted tokens along one path. draft_vocab: tokens that they can propose, the most
    frequent ones. Raises ConfigError.
    """
    if not 1 <= depths <= MOST:
        raise ConfigError(f"depths is {depths}, allowed: 1 to {MOST}")
    return Pads(teacher, depths, draft_vocab)


class Pads(Architecture):
    """The pads."""

    def __init__(self, teacher: Teacher, depths: int, draft_vocab: int) -> None:
        super().__init__()
        self._teacher, self._layers, self.depths = teacher, teacher.layers, depths
        vocabulary = teacher.likeliest(min(draft_vocab, len(teacher.counts)))
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        self.register_buffer("_head", self._layers.head.cpu()[vocabulary], persistent=False)
        # At first any token of the answers might stand there.
        shares = torch.from_numpy(teacher.counts / teacher.counts.sum()).float()
        mean = shares @ self._layers.embedding.cpu() * teacher.config.embedding_scale
        self.embeddings = nn.ParameterList([nn.Parameter(mean.clone()) for _ in range(depths)])

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`. The target's rows."""
        return self._head

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        read = self._layers.follow(self._layers.read(batch.tokens), torch.stack([*self.embeddings]))
        for depth, slots in enumerate(read):
            yield slots[batch.bases(depth)]

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Architecture.known_tokens`."""
        return tensors["token_map"]

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `paceline.models.pads_folder`."""
        teacher = self._teacher
        config = PadsConfig(
            hidden=teacher.config.hidden,
            depths=self.depths,
            vocab_size=teacher.config.vocab_size,
            draft_vocab_size=len(self.vocabulary),
        )
        return config.described, {**weights, "token_map": self.vocabulary.cpu()}
