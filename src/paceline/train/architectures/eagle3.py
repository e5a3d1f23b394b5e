"""EAGLE-3: one decoder layer that reads the target's features and then its own.

Slot t reads token t + 1 and the target's hidden states at t, put together by `fc`; what the layer makes of
them predicts token t + 2, and stands in for the hidden states at t + 1 when the next slot drafts on. Training
unrolls this (training-time test): at depth j the layer reads token t + 1 + j and its own output of depth
j - 1, and attends to the slots up to t as they were at depth 0 and to its own slots of depths 1 to j, which
is what a draft that begins at t sees.

Source: Li et al., "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time
Test", 2025 (arXiv 2503.01840). Names of tensors and settings: the speculators library, whose folders vLLM
loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.models.eagle3_folder import Eagle3Config, speculators_form
from paceline.train.architectures._decoder import DecoderDrafter, Mlp, rotary_frequencies, rotated
from paceline.train.batches import Batch
from paceline.train.draft_attention import Pair, draft_attention
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 5, draft_vocab: int = 8192) -> Eagle3:
    """A fresh EAGLE-3 drafter, its layer of the target's own shape.

    depths: drafted tokens along one path that it is trained for. draft_vocab: tokens that it can propose, the
    most frequent ones; fewer make it faster. Raises ConfigError.
    """
    if not 1 <= depths <= 16:
        raise ConfigError(f"depths is {depths}, allowed: 1 to 16")
    if not teacher.layer_ids:
        raise ConfigError("eagle3 reads hidden states of inner layers; make data that has some (--taps)")
    return Eagle3(teacher, depths, draft_vocab)


class Eagle3(DecoderDrafter):
    """The drafter."""

    def __init__(
        self, teacher: Teacher, depths: int, draft_vocab: int, further: Iterable[nn.Module] = ()
    ) -> None:
        """further: layers behind the first."""
        super().__init__(teacher, depths, draft_vocab, [Layer(teacher.config), *further])
        hidden = teacher.config.hidden
        with torch.no_grad():
            # What the last tap holds comes through as it is: the target's own way to its next token.
            self.fc.weight[:, -hidden:] += torch.eye(hidden) / teacher.scales[-2]

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        # The residual stream stays in float32 where products are made in bfloat16.
        features = self.fc(batch.states[:, :, :-1].flatten(2).float()).float()
        seen: list[Pair] = []
        for depth in range(self.depths):
            tokens = functional.embedding(batch.shifted(depth + 1), self.embedding)
            features = self.layers[0](tokens.float(), features, seen)
            yield self.norm(features[batch.bases(depth)])

    @property
    def described(self) -> Eagle3Config:
        """What its folder says of it."""
        return Eagle3Config(
            **self.shape,
            target_hidden=self._config.hidden,
            layer_ids=tuple(self._layer_ids),
            norm_before_residual=False,
            norm_before_fc=False,
            fc_norm=False,
            norm_output=False,
            draft_tokens=self.depths,
            layers=len(self.layers),
        )

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of the speculators form."""
        return speculators_form(self.described, self._layer_ids, model), self.tensors(weights)


class Layer(nn.Module):
    """A Llama layer that reads an embedding beside the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden, config.norm_eps
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.hidden_norm = nn.RMSNorm(hidden, eps)
        self.self_attn = Attention(config, 2 * hidden)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = Mlp(hidden, config.ffn)

    def forward(self, tokens: Tensor, features: Tensor, seen: list[Pair]) -> Tensor:
        """What one depth makes of embedded tokens and features, [B, L, H] each. seen: keys and values of the
        depths before, to which this one's are added."""
        read = torch.cat((self.input_layernorm(tokens), self.hidden_norm(features)), -1)
        features = features + self.self_attn(read, seen)
        out: Tensor = features + self.mlp(self.post_attention_layernorm(features))
        return out


class Attention(nn.Module):
    """Grouped queries over the slots of depth 0 up to a base, and the slots of one draft behind it."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        """width: of what it reads."""
        super().__init__()
        self._dim, self._groups = config.head_dim, config.heads // config.kv_heads
        q, kv = config.heads * self._dim, config.kv_heads * self._dim
        self.q_proj = nn.Linear(width, q, bias=False)
        self.k_proj = nn.Linear(width, kv, bias=False)
        self.v_proj = nn.Linear(width, kv, bias=False)
        self.o_proj = nn.Linear(q, config.hidden, bias=False)
        self.register_buffer("_frequencies", rotary_frequencies(config), persistent=False)

    def forward(self, read: Tensor, seen: list[Pair]) -> Tensor:
        """What the slots of one depth attend to: [B, L, H]. read: [B, L, width]."""
        depth = len(seen)
        q = self._rotated(self.queries(read), depth)
        k = self._rotated(self.keys(read), depth).repeat_interleave(self._groups, 1)
        v = self._heads(self.v_proj(read)).repeat_interleave(self._groups, 1)
        seen.append((k, v))
        attended = draft_attention(q, seen)
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out

    def queries(self, read: Tensor) -> Tensor:
        """[B, heads, L, dim], before they are rotated."""
        return self._heads(self.q_proj(read))

    def keys(self, read: Tensor) -> Tensor:
        """[B, kv_heads, L, dim], before they are rotated."""
        return self._heads(self.k_proj(read))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self._dim)).transpose(1, 2)

    def _rotated(self, x: Tensor, depth: int) -> Tensor:
        """x [B, heads, L, dim] at its positions: the slot of depth j behind base t stands at t + j."""
        positions = torch.arange(x.shape[2], device=x.device) + depth
        return rotated(x, positions[:, None] * self._frequencies).to(x.dtype)
