"""DFlash: a block of mask tokens behind a known token, all of whose places are predicted in one pass.

The anchor t + 1 is a token whose own hidden states are not known yet. Its block is its embedding and, for
each drafted token, that of a mask token. Every layer attends in both directions inside the block, and to keys
and values made of the target's hidden states up to t. Mask j predicts token t + 1 + j.

Every token of an answer that a draft may begin behind is an anchor; the paper draws some of them, for its
blocks are longer and its layers more. What a mask predicts is learnt from the target's law, and not from one
token of it.

Source: "DFlash: Block Diffusion for Flash Speculative Decoding", 2026 (arXiv 2602.06036). Names of tensors
and settings: the speculators library, whose folders vLLM loads. The head begins as the target's rows and is
trained; the paper's is the target's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.models.dflash_folder import DFlashConfig, speculators_form
from paceline.train.architectures._base import Architecture
from paceline.train.architectures.eagle3 import SPREAD, Mlp
from paceline.train.batches import Batch, rounded
from paceline.train.draft_attention import draft_attention
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 5, layers: int = 1, draft_vocab: int = 8192) -> DFlash:
    """A fresh DFlash drafter, its layers of the target's own shape.

    depths: drafted tokens along one path, which is the block but for its anchor. layers: decoder layers.
    draft_vocab: tokens that it can propose, the most frequent ones. Raises ConfigError.
    """
    for name, value, most in (("depths", depths, 16), ("layers", layers, 8)):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}, allowed: 1 to {most}")
    if not teacher.layer_ids:
        raise ConfigError("dflash reads hidden states of inner layers; make data that has some (--taps)")
    return DFlash(teacher, depths, layers, teacher.likeliest(min(draft_vocab, len(teacher.counts))))


class DFlash(Architecture):
    """The drafter; the embedding is the target's and is not trained."""

    def __init__(self, teacher: Teacher, depths: int, layers: int, vocabulary: Tensor) -> None:
        super().__init__()
        config = teacher.config
        self._config, self._layer_ids = config, teacher.layer_ids
        self._mask = int(teacher.counts.argmin())  # a token that answers hardly ever hold
        self.depths = depths
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        self.register_buffer("embedding", teacher.embedding, persistent=False)
        self.fc = nn.Linear(len(self._layer_ids) * config.hidden, config.hidden, bias=False)
        self.hidden_norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.layers = nn.ModuleList([Layer(config) for _ in range(layers)])
        self.norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden, len(vocabulary), bias=False)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=SPREAD)
        with torch.no_grad():
            # Taps differ in size by orders of magnitude; the context should begin with equal parts of each.
            scale = torch.tensor([1 / tap for tap in teacher.scales[:-1]]).repeat_interleave(config.hidden)
            self.fc.weight.normal_(std=self.fc.in_features**-0.5).mul_(scale)
            rows = teacher.head.cpu()[vocabulary].float()
            self.lm_head.weight.copy_(rows)
            # As for EAGLE-3: logits that mean nothing yet should not be far apart.
            self.norm.weight.fill_(rows.square().sum(-1).mean() ** -0.5)

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`."""
        return self.lm_head.weight

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        # The residual stream stays in float32 where products are made in bfloat16.
        context = self.hidden_norm(self.fc(batch.states[:, :, :-1].flatten(2).float()).float())
        bases = batch.bases(0)
        anchors = batch.shifted(1)[bases]
        count = len(anchors)
        slots = anchors.new_full((rounded(count), self.depths + 1), self._mask)  # the last may be no base's
        slots[:count, 0] = anchors
        blocks = functional.embedding(slots, self.embedding).float()
        for layer in self.layers:
            blocks = layer(context, blocks, bases)
        for depth in range(self.depths):
            yield self.norm(blocks[:count, depth + 1][batch.bases(depth)[bases]])

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `Architecture.known_tokens`."""
        return tensors["d2t"] + torch.arange(len(tensors["d2t"]))

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of the speculators form."""
        ids = self.vocabulary.cpu()
        known = torch.zeros(self._config.vocab_size, dtype=torch.bool)
        known[ids] = True
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        tensors |= {"d2t": ids - torch.arange(len(ids)), "t2d": known}
        target = self._config
        config = DFlashConfig(
            hidden=target.hidden,
            layers=len(self.layers),
            ffn=target.ffn,
            heads=target.heads,
            kv_heads=target.kv_heads,
            head_dim=target.head_dim,
            norm_eps=target.norm_eps,
            vocab_size=target.vocab_size,
            draft_vocab_size=len(ids),
            context=target.context,
            layer_ids=tuple(self._layer_ids),
            block=self.depths + 1,
            mask_token=self._mask,
            rope_theta=target.rope_theta,
        )
        return speculators_form(config, model), tensors


class Layer(nn.Module):
    """A Qwen3 layer whose keys and values are those of a block and of a context."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden, config.norm_eps
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = Mlp(hidden, config.ffn)

    def forward(self, context: Tensor, blocks: Tensor, bases: Tensor) -> Tensor:
        """What the layer makes of blocks [n, S, H] of a context [B, L, H]: the first of them stand behind the
        bases, bool [B, L]."""
        blocks = blocks + self.self_attn(context, self.input_layernorm(blocks), bases)
        out: Tensor = blocks + self.mlp(self.post_attention_layernorm(blocks))
        return out


class Attention(nn.Module):
    """Grouped queries of each block over the context up to its base, and over the block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._dim, self._groups = config.head_dim, config.heads // config.kv_heads
        hidden, q, kv = config.hidden, config.heads * self._dim, config.kv_heads * self._dim
        self.q_proj = nn.Linear(hidden, q, bias=False)
        self.k_proj = nn.Linear(hidden, kv, bias=False)
        self.v_proj = nn.Linear(hidden, kv, bias=False)
        self.o_proj = nn.Linear(q, hidden, bias=False)
        self.q_norm = nn.RMSNorm(self._dim, config.norm_eps)
        self.k_norm = nn.RMSNorm(self._dim, config.norm_eps)
        exponents = -torch.arange(0, self._dim, 2) / self._dim
        self.register_buffer("_frequencies", config.rope_theta**exponents, persistent=False)

    def forward(self, context: Tensor, read: Tensor, bases: Tensor) -> Tensor:
        """[n, S, H]; read: [n, S, H]."""
        places = torch.arange(bases.shape[1], device=bases.device)
        keys, values = self._keys(context, places.expand(bases.shape)), self._values(context)
        known = places.expand(bases.shape)[bases]
        count, padding = len(known), len(read) - len(known)
        own = functional.pad(known, (0, padding))[:, None] + 1 + places[: read.shape[1]]
        q = self._rotated(self.q_norm(self._heads(self.q_proj(read)).float()), own).to(keys.dtype)
        parts = (q, self._keys(read, own), self._values(read))
        # The slots of the blocks, each beside its base: [B, heads, L, dim].
        slots = [[self._beside(bases, part[:count, slot]) for part in parts] for slot in range(read.shape[1])]
        seen = [(keys.transpose(1, 2), values.transpose(1, 2)), *((k, v) for _, k, v in slots)]
        attended = [draft_attention(query, seen).transpose(1, 2)[bases] for query, _, _ in slots]
        whole = functional.pad(torch.stack(attended, 1).flatten(2), (0, 0, 0, 0, 0, padding))
        out: Tensor = self.o_proj(whole)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """[..., heads, dim]."""
        return x.unflatten(-1, (-1, self._dim))

    def _keys(self, x: Tensor, positions: Tensor) -> Tensor:
        keys = self._heads(self.k_proj(x))
        rotated = self._rotated(self.k_norm(keys.float()), positions).to(keys.dtype)
        return rotated.repeat_interleave(self._groups, -2)

    def _values(self, x: Tensor) -> Tensor:
        return self._heads(self.v_proj(x)).repeat_interleave(self._groups, -2)

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions (Su et al., 2021) on the pairs (i, i + dim/2) of x [..., heads, dim]."""
        angles = positions[..., None, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        left, right = x.chunk(2, -1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)

    @staticmethod
    def _beside(bases: Tensor, part: Tensor) -> Tensor:
        """[n, heads, dim] as [B, heads, L, dim], zero where there is no base."""
        whole = part.new_zeros(*bases.shape, *part.shape[1:])
        whole[bases] = part
        return whole.transpose(1, 2)
