"""Hydra: Medusa's blocks, each of which reads the tokens that were drafted before its own, too.

Block k reads the hidden state that the target made its next token of, and the embeddings of that token and of
the k drafted behind it, each divided by its root mean square. In training these are the text's own tokens.
The embeddings are the target's and are not trained.

Source: Ankner et al., "Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding", 2024 (arXiv
2402.05109). Names of tensors and settings: Medusa's, see `paceline.models.heads_folder`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

from paceline.models.heads_folder import HeadsConfig
from paceline.train.architectures.medusa import Medusa, config_of
from paceline.train.batches import Batch
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 4, draft_vocab: int = 8192, layers: int = 1) -> Hydra:
    """Fresh Hydra heads.

    depths: heads, which is drafted tokens along one path. draft_vocab: tokens that they can propose, the most
    frequent ones. layers: of each block. Raises ConfigError.
    """
    return Hydra(config_of("hydra", teacher, depths, draft_vocab, layers), teacher)


class Hydra(Medusa):
    """The heads."""

    def __init__(self, config: HeadsConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.register_buffer("embedding", teacher.embedding, persistent=False)

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        embedded: list[Tensor] = []  # of the token behind each position, and of those behind that one
        for depth, block in enumerate(self.blocks):
            rows = functional.embedding(batch.shifted(depth + 1), self.embedding).float()
            embedded.append(rows * (rows.square().mean(-1, keepdim=True) + 1e-12).rsqrt())
            bases = batch.bases(depth)
            state = self._teacher.last(batch.states[:, :, -1][bases])
            yield block(state, *(of[bases] for of in embedded))
