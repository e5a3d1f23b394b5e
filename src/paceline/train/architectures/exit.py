"""Exits: for some of the target's layers a linear map behind which its own head says what all layers would.

The target stays as it is, and so do its answers; only what reads its inner hidden states is trained, each
exit by itself, at every token once.

Sources: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023 (arXiv
2303.08112), for the map and its training; Elhoushi et al., "LayerSkip", 2024 (arXiv 2404.16710), for drafting
with exits, where the target itself is trained for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paceline.errors import ConfigError
from paceline.models.exit_folder import ExitConfig
from paceline.train.architectures._base import Architecture
from paceline.train.batches import Batch
from paceline.train.losses import behind
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 4, draft_vocab: int = 8192) -> Exits:
    """Fresh exits behind the layers whose hidden states the data holds, which change nothing yet.

    depths: drafted tokens along one path that the last exit is measured with. draft_vocab: tokens that they
    are trained over, the most frequent ones; they propose any. Raises ConfigError.
    """
    if not 1 <= depths <= 16:
        raise ConfigError(f"depths is {depths}, allowed: 1 to 16")
    if not any(teacher.layer_ids):
        raise ConfigError("exit reads hidden states of inner layers; make data that has some (--taps)")
    return Exits(teacher, depths, draft_vocab)


class Exits(Architecture):
    """The exits."""

    def __init__(self, teacher: Teacher, depths: int, draft_vocab: int) -> None:
        super().__init__()
        config = teacher.config
        vocabulary = teacher.likeliest(min(draft_vocab, len(teacher.counts)))
        self.depths = depths
        self._taps = {layer: tap for tap, layer in enumerate(teacher.layer_ids) if layer}
        self._config = ExitConfig(
            exits=tuple(sorted(self._taps)),
            hidden=config.hidden,
            layers=config.layers,
            vocab_size=config.vocab_size,
            norm_eps=config.norm_eps,
        )
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        rows = teacher.head[vocabulary.to(teacher.head.device)].float()
        self.register_buffer("rows", rows, persistent=False)
        self.exits = nn.ModuleDict({str(exit): Exit(teacher) for exit in self._config.exits})

    @property
    def head(self) -> Tensor:
        """The target's rows, which are not trained."""
        return self.rows

    @property
    def lessons(self) -> Sequence[int]:
        """Depth 0 of each exit: it has every token of an answer."""
        return (0,) * len(self._taps)

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`: of the last exit."""
        for depth in range(self.depths):
            yield self._read(batch, self._config.exits[-1], depth)

    def study(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.study`: of all exits."""
        for exit in self._config.exits:
            yield self._read(batch, exit, 0)

    def _read(self, batch: Batch, exit: int, depth: int) -> Tensor:
        states = batch.states[:, :, self._taps[exit]][behind(batch.bases(depth), depth + 1)]
        read: Tensor = self.exits[str(exit)](states.float())
        return read

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Those of the data at hand: a folder of exits names none, for they propose any."""
        return self.vocabulary

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of exits, see `paceline.models.exit_folder`."""
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        return self._config.described, tensors


class Exit(nn.Module):
    """A linear map whose result is added to what it reads, and a last norm. It begins as the target's own."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        hidden = teacher.config.hidden
        self.weight = nn.Parameter(torch.zeros(hidden, hidden))
        self.norm = nn.RMSNorm(hidden, teacher.config.norm_eps)
        with torch.no_grad():
            self.norm.weight.copy_(teacher.norm)

    def forward(self, states: Tensor) -> Tensor:
        """[n, H] to what the head reads, [n, H]."""
        out: Tensor = self.norm(states + nn.functional.linear(states, self.weight))
        return out
