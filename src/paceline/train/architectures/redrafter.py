"""ReDrafter: a small recurrent network that goes on from the target's last hidden state, token by token.

Its state begins as the one behind which the target drew the next token. One cell reads that token and the
state and changes it, and again for every token drafted behind; one head, which begins as the target's rows,
turns each state into a law. In training the tokens are the text's own. The embeddings are the target's and
are not trained.

The paper's cell is a plain recurrent one with the target's state beside its own, and learns from sampled
answers; this one is gated, adds to the state and learns from the target's law, so that it says from the start
what the target would have said one token earlier.

Sources: Cheng et al., "Recurrent Drafter for Fast Speculative Decoding in Large Language Models", 2024 (arXiv
2403.09919); Shazeer, "GLU Variants Improve Transformer", 2020 (arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.redrafter_folder import MOST, RedrafterConfig
from paceline.train.architectures._base import Architecture
from paceline.train.architectures._decoder import SPREAD
from paceline.train.batches import Batch
from paceline.train.teacher import Teacher


def build(
    teacher: Teacher, *, depths: int = 4, draft_vocab: int = 8192, layers: int = 1, inner: int = 0
) -> Redrafter:
    """A fresh recurrent drafter.

    depths: drafted tokens along one path that it is trained for. draft_vocab: tokens that it can propose, the
    most frequent ones. layers: of the network, of which the first is the cell. inner: width between a layer's
    matrices; 0: that of the target's own. Raises ConfigError.
    """
    for name, value in (("depths", depths), ("layers", layers)):
        if not 1 <= value <= MOST:
            raise ConfigError(f"{name} is {value}, allowed: 1 to {MOST}")
    if inner < 0 or inner % 32:
        raise ConfigError(f"inner is {inner}, allowed: multiples of 32")
    config = RedrafterConfig(
        hidden=teacher.config.hidden,
        inner=inner or teacher.config.ffn,
        layers=layers,
        depths=depths,
        vocab_size=teacher.config.vocab_size,
        draft_vocab_size=min(draft_vocab, len(teacher.counts)),
    )
    return Redrafter(config, teacher)


class Redrafter(Architecture):
    """The network."""

    def __init__(self, config: RedrafterConfig, teacher: Teacher) -> None:
        super().__init__()
        self._config, self._teacher, self.depths = config, teacher, config.depths
        vocabulary = teacher.likeliest(config.draft_vocab_size)
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        self.register_buffer("embedding", teacher.embedding, persistent=False)
        self.layers = nn.ModuleList([Layer(config, cell=not layer) for layer in range(config.layers)])
        self.lm_head = nn.Linear(config.hidden, len(vocabulary), bias=False)
        with torch.no_grad():
            self.lm_head.weight.copy_(teacher.head.cpu()[vocabulary])

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`."""
        return self.lm_head.weight

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        state, begun = self._teacher.last(batch.states[:, :, -1]), batch.bases(0)
        state = state[begun]
        for depth in range(self.depths):
            bases = batch.bases(depth)
            state = state[bases[begun]]
            begun = bases
            read = unit(functional.embedding(batch.shifted(depth + 1)[bases], self.embedding).float())
            for layer in self.layers:
                state = layer(state, read)
            yield state

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Architecture.known_tokens`."""
        return tensors["token_map"]

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of a recurrent drafter, see `paceline.models.redrafter_folder`."""
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        return self._config.described, {**tensors, "token_map": self.vocabulary.cpu()}


class Layer(nn.Module):
    """A gated layer whose output is added to the state; it changes nothing at first. cell: it reads the
    embedding of a token, too."""

    def __init__(self, config: RedrafterConfig, *, cell: bool) -> None:
        super().__init__()
        reads = 2 * config.hidden if cell else config.hidden
        self._cell = cell
        self.gate = nn.Linear(reads, config.inner, bias=False)
        self.up = nn.Linear(reads, config.inner, bias=False)
        self.down = nn.Linear(config.inner, config.hidden, bias=False)
        for part in (self.gate, self.up):
            nn.init.normal_(part.weight, std=SPREAD)
        nn.init.zeros_(self.down.weight)

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """States [n, H] and embeddings [n, H] to the states behind them."""
        read = torch.cat((embedded, unit(state)), -1) if self._cell else unit(state)
        out: Tensor = state + self.down(functional.silu(self.gate(read)) * self.up(read)).float()
        return out


def unit(x: Tensor) -> Tensor:
    """Rows [..., H], each divided by its root mean square."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-12).rsqrt()
