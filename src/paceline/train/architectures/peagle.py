"""P-EAGLE: EAGLE-3's layer, trained to draft all tokens of a path in one pass.

Slot t reads token t + 1 and the target's hidden states at t, as EAGLE-3's does, and predicts token t + 2.
The slots behind it read the embedding of a mask token and, in place of hidden states, vectors that are
learnt, the same for all of them; they attend to the slots up to t and to those of their own draft, and slot
t + j predicts token t + 2 + j. Every depth of every base is seen in a step, as a draft sees it; the paper
leaves some out, for its layers are more.

Source: "P-EAGLE: Parallel-Drafting EAGLE with Scalable Training", 2026 (arXiv 2602.01469). Names of tensors
and settings: the speculators library, whose folders vLLM loads. The embedding is the target's and is not
trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.models.eagle3_folder import Eagle3Config
from paceline.train.architectures._decoder import Mlp
from paceline.train.architectures.eagle3 import Attention, Eagle3
from paceline.train.batches import Batch
from paceline.train.draft_attention import Pair
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 5, layers: int = 1, draft_vocab: int = 8192) -> PEagle:
    """A fresh P-EAGLE drafter, its layers of the target's own shape.

    depths: drafted tokens along one path. layers: decoder layers. draft_vocab: tokens that it can propose,
    the most frequent ones. Raises ConfigError.
    """
    for name, value, most in (("depths", depths, 16), ("layers", layers, 8)):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}, allowed: 1 to {most}")
    if not teacher.layer_ids:
        raise ConfigError("peagle reads hidden states of inner layers; make data that has some (--taps)")
    return PEagle(teacher, depths, layers, draft_vocab)


class PEagle(Eagle3):
    """The drafter."""

    def __init__(self, teacher: Teacher, depths: int, layers: int, draft_vocab: int) -> None:
        further = [Layer(teacher.config) for _ in range(layers - 1)]
        super().__init__(teacher, depths, draft_vocab, further)
        self._mask = int(teacher.counts.argmin())  # a token that answers hardly ever hold
        # As long as the hidden states are whose place it takes.
        scale = torch.tensor(teacher.scales[:-1]).repeat_interleave(teacher.config.hidden)
        self.mask_hidden = nn.Parameter(torch.randn(1, 1, len(scale)) * scale)

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        # The residual stream stays in float32 where products are made in bfloat16.
        states = batch.states[:, :, :-1].flatten(2).float()
        seen: list[list[Pair]] = [[] for _ in self.layers]
        for depth in range(self.depths):
            tokens = torch.full_like(batch.tokens, self._mask) if depth else batch.shifted(1)
            embedded = functional.embedding(tokens, self.embedding).float()
            x = self.fc(self.mask_hidden if depth else states).float().expand(embedded.shape)
            for layer, own in zip(self.layers, seen, strict=True):
                x = layer(embedded, x, own)
            yield self.norm(x[batch.bases(depth)])

    @property
    def described(self) -> Eagle3Config:
        """See `Eagle3.described`."""
        return replace(super().described, mask_token=self._mask)


class Layer(nn.Module):
    """A Llama layer behind the first, which reads the residual stream alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden, config.norm_eps
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.self_attn = Attention(config, hidden)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = Mlp(hidden, config.ffn)

    def forward(self, _: Tensor, x: Tensor, seen: list[Pair]) -> Tensor:
        """What one depth makes of x, [B, L, H]. seen: keys and values of the depths before, to which this
        one's are added."""
        x = x + self.self_attn(self.input_layernorm(x), seen)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out
