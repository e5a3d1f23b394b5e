"""DSpark: DFlash's block, a Markov head that knows the token above, and a confidence head.

The block has no slot more than it drafts: the anchor's own predicts the token behind it, and so do the masks.
To the logits of each place the Markov head adds a product of low rank with a row of the token right before
it; in training that is the text's own token. The confidence head reads what the two heads read, and learns
by cross entropy how likely a drawn token is accepted, Σ min(p, q), within the drafter's vocabulary. It learns
on the side: what it reads is not changed for it, where the paper trains all together.

Source: "DSpark", 2026 (DeepSeek-AI, github.com/deepseek-ai/DeepSpec). Names of tensors and settings: the
speculators library, whose folders vLLM loads. The loss of the laws is the loop's own, and there is no scaling
of the confidences afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.dspark_folder import DSparkConfig, speculators_form
from paceline.train.architectures.dflash import DFlash, check_options
from paceline.train.batches import Batch
from paceline.train.teacher import Teacher

RANKS = 32
"""The kernels multiply by matrices whose widths are multiples of it."""


def build(
    teacher: Teacher,
    *,
    depths: int = 5,
    layers: int = 1,
    draft_vocab: int = 8192,
    head: str = "own",
    rank: int = 64,
) -> DSpark:
    """A fresh DSpark drafter, its layers of the target's own shape.

    depths: drafted tokens along one path, which is the block. layers: decoder layers. head: "own", of so many
    tokens as `draft_vocab` says, the most frequent ones; or "target", the target's own, which is not trained,
    of all tokens. rank: of the Markov head. Raises ConfigError.
    """
    check_options("dspark", teacher, depths, layers, head)
    if not 1 <= rank <= 1024 or rank % RANKS:
        raise ConfigError(f"rank is {rank}, allowed: multiples of {RANKS} up to 1024")
    return DSpark(teacher, depths, layers, draft_vocab, rank, own_head=head == "own")


class DSpark(DFlash):
    """The drafter."""

    def __init__(
        self, teacher: Teacher, depths: int, layers: int, draft_vocab: int, rank: int, *, own_head: bool
    ) -> None:
        super().__init__(teacher, depths, layers, draft_vocab, own_head=own_head, block=depths)
        rows, add = (
            nn.Embedding(teacher.config.vocab_size, rank),
            nn.Linear(rank, len(self.vocabulary), False),
        )
        self.markov_head = nn.ModuleDict({"markov_w1": rows, "markov_w2": add})
        self.confidence_head = nn.ModuleDict({"proj": nn.Linear(teacher.config.hidden + rank, 1)})
        nn.init.normal_(rows.weight, std=rank**-0.5)
        for weight in (add.weight, *self.confidence_head.parameters()):
            nn.init.zeros_(weight)

    @property
    def head(self) -> Tensor:
        """Both heads, side by side: see `Architecture.head`."""
        return torch.cat((super().head, self.markov_head["markov_w2"].weight), 1)

    @property
    def outer(self) -> list[nn.Parameter]:
        """See `Architecture.outer`."""
        parts = [self.markov_head["markov_w2"], self.confidence_head["proj"], self.lm_head]
        return [*super().outer, *(part.weight for part in parts if part is not None)]

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        for depth, read in enumerate(super().forward(batch)):
            above = batch.shifted(1 + depth)[batch.bases(depth)]
            yield torch.cat((read, self.markov_head["markov_w1"](above)), 1)

    def aside(self, read: Tensor, overlap: Tensor) -> Tensor:
        """See `Architecture.aside`."""
        certain = self.confidence_head["proj"](read.detach()).float().squeeze(1)
        return functional.binary_cross_entropy_with_logits(certain, overlap, reduction="sum")

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of the speculators form."""
        rank = self.markov_head["markov_w1"].embedding_dim
        config = DSparkConfig(
            **self.fields, rank=rank, from_anchor=True, confidence=True, confidence_tokens=True
        )
        return speculators_form(config, model), self.tensors(weights)
