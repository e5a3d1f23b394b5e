"""What drafters have in common that are made of the target's own kind of decoder layers.

Their embedding is the target's and is not trained. Of those that read the target's inner layers, `fc` puts
the hidden states together, and the head begins as the target's rows and is trained, or is the target's own
and is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.models.config import ModelConfig
from paceline.train.architectures._base import Architecture
from paceline.train.teacher import Teacher

SPREAD = 0.02
"""Standard deviation of fresh weights."""


class LikeTarget(Architecture):
    """A drafter in training that has the target's embedding and proposes the most frequent tokens."""

    def __init__(self, teacher: Teacher, depths: int, draft_vocab: int) -> None:
        super().__init__()
        vocabulary = teacher.likeliest(min(draft_vocab, len(teacher.counts)))
        self._config, self.depths = teacher.config, depths
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        self.register_buffer("embedding", teacher.embedding, persistent=False)

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Architecture.known_tokens`."""
        return tensors["d2t"] + torch.arange(len(tensors["d2t"]))

    @property
    def shape(self) -> dict[str, Any]:
        """The fields of `paceline.models.drafter_folder.DecoderConfig`, those of the target's own layers."""
        target = self._config
        return {
            "hidden": target.hidden,
            "ffn": target.ffn,
            "heads": target.heads,
            "kv_heads": target.kv_heads,
            "head_dim": target.head_dim,
            "norm_eps": target.norm_eps,
            "vocab_size": target.vocab_size,
            "draft_vocab_size": len(self.vocabulary),
            "context": target.context,
            "rope_theta": target.rope_theta,
        }

    def tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What goes into a folder of the speculators form, of these parameters."""
        ids = self.vocabulary.cpu()
        known = torch.zeros(self._config.vocab_size, dtype=torch.bool)
        known[ids] = True
        own = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        return {**own, "d2t": ids - torch.arange(len(ids)), "t2d": known}


class DecoderDrafter(LikeTarget):
    """One that reads the target's inner layers. Where its head is the target's, it proposes all tokens."""

    def __init__(
        self,
        teacher: Teacher,
        depths: int,
        draft_vocab: int,
        layers: Iterable[nn.Module],
        *,
        own_head: bool = True,
    ) -> None:
        super().__init__(teacher, depths, draft_vocab if own_head else len(teacher.counts))
        config, vocabulary = teacher.config, self.vocabulary
        self._layer_ids = teacher.layer_ids
        self.fc = nn.Linear(len(self._layer_ids) * config.hidden, config.hidden, bias=False)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden, len(vocabulary), bias=False) if own_head else None
        self.register_buffer("_frozen", None if own_head else teacher.head, persistent=False)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=SPREAD)
        with torch.no_grad():
            # Taps differ in size by orders of magnitude; the layers should begin with equal parts of each.
            scale = torch.tensor([1 / tap for tap in teacher.scales[:-1]]).repeat_interleave(config.hidden)
            self.fc.weight.normal_(std=self.fc.in_features**-0.5).mul_(scale)
            rows = teacher.head.cpu()[vocabulary].float()
            if self.lm_head is not None:
                self.lm_head.weight.copy_(rows)
            # With the target's rows as they are, logits of features that mean nothing yet would be far apart.
            self.norm.weight.fill_(rows.square().sum(-1).mean() ** -0.5)

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`."""
        return self._frozen.float() if self.lm_head is None else self.lm_head.weight


class Mlp(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, H] to [B, L, H]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position, float32 [head_dim/2]."""
    exponents = -torch.arange(0, config.head_dim, 2) / config.head_dim
    return config.rope_theta**exponents


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021) on the pairs (i, i + dim/2) of x [..., dim], float32. angles:
    [..., dim/2], broadcast."""
    cos, sin = angles.cos(), angles.sin()
    left, right = x.float().chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)
