"""DFlash: a block of mask tokens behind a known token, all of whose places are predicted in one pass.

The anchor t + 1 is a token whose own hidden states are not known yet. Its block is its embedding and, for
each drafted token, that of a mask token. Every layer attends in both directions inside the block, and to keys
and values made of the target's hidden states up to t. Mask j predicts token t + 1 + j.

Every token of an answer that a draft may begin behind is an anchor; the paper draws some of them, for its
blocks are longer and its layers more. What a mask predicts is learnt from the target's law, and not from one
token of it.

Source: "DFlash: Block Diffusion for Flash Speculative Decoding", 2026 (arXiv 2602.06036). Names of tensors
and settings: the speculators library, whose folders vLLM loads. The paper's head is the target's; here it may
also begin as some of the target's rows and be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.models.dflash_folder import DFlashConfig, speculators_form
from paceline.train.architectures._decoder import DecoderDrafter, Mlp, rotary_frequencies, rotated
from paceline.train.batches import Batch, rounded
from paceline.train.draft_attention import draft_attention
from paceline.train.teacher import Teacher


def build(
    teacher: Teacher, *, depths: int = 5, layers: int = 1, draft_vocab: int = 8192, head: str = "own"
) -> DFlash:
    """A fresh DFlash drafter, its layers of the target's own shape.

    depths: drafted tokens along one path, which is the block but for its anchor. layers: decoder layers.
    head: "own", of so many tokens as `draft_vocab` says, the most frequent ones; or "target", the target's
    own, which is not trained, of all tokens. Raises ConfigError.
    """
    check_options("dflash", teacher, depths, layers, head)
    return DFlash(teacher, depths, layers, draft_vocab, own_head=head == "own")


def check_options(architecture: str, teacher: Teacher, depths: int, layers: int, head: str) -> None:
    """Raise ConfigError for a value out of range, or data without hidden states of inner layers."""
    for name, value, most in (("depths", depths, 16), ("layers", layers, 8)):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}, allowed: 1 to {most}")
    if head not in ("own", "target"):
        raise ConfigError(f"head is {head!r}, allowed: own, target")
    if not teacher.layer_ids:
        raise ConfigError(
            f"{architecture} reads hidden states of inner layers; make data that has some (--taps)"
        )


class DFlash(DecoderDrafter):
    """The drafter."""

    def __init__(
        self,
        teacher: Teacher,
        depths: int,
        layers: int,
        draft_vocab: int,
        *,
        own_head: bool,
        block: int = 0,
        make: Callable[[ModelConfig], nn.Module] | None = None,
    ) -> None:
        """block: its slots, of which the last `depths` predict; 0: one more than these. make: a fresh layer;
        None: plain ones."""
        fresh = [(make or Layer)(teacher.config) for _ in range(layers)]
        super().__init__(teacher, depths, draft_vocab, fresh, own_head=own_head)
        self._block = block or depths + 1
        self._mask = int(teacher.counts.argmin())  # a token that answers hardly ever hold
        self.hidden_norm = nn.RMSNorm(teacher.config.hidden, teacher.config.norm_eps)

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        # The residual stream stays in float32 where products are made in bfloat16.
        context = self.hidden_norm(self.fc(batch.states[:, :, :-1].flatten(2).float()).float())
        bases = batch.bases(0)
        anchors = batch.shifted(1)[bases]
        count = len(anchors)
        slots = anchors.new_full((rounded(count), self._block), self._mask)  # the last may be no base's
        slots[:count, 0] = anchors
        blocks = functional.embedding(slots, self.embedding).float()
        for layer in self.layers:
            blocks = layer(context, blocks, bases)
        first = self._block - self.depths
        for depth in range(self.depths):
            yield self.norm(blocks[:count, first + depth][batch.bases(depth)[bases]])

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of the speculators form."""
        return speculators_form(DFlashConfig(**self.fields), model), self.tensors(weights)

    @property
    def fields(self) -> dict[str, Any]:
        """Those of `DFlashConfig`."""
        return {
            **self.shape,
            "layers": len(self.layers),
            "layer_ids": tuple(self._layer_ids),
            "block": self._block,
            "mask_token": self._mask,
        }


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
        self.register_buffer("_frequencies", rotary_frequencies(config), persistent=False)

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
        """x [..., heads, dim] at these positions."""
        return rotated(x, positions[..., None, None] * self._frequencies)

    @staticmethod
    def _beside(bases: Tensor, part: Tensor) -> Tensor:
        """[n, heads, dim] as [B, heads, L, dim], zero where there is no base."""
        whole = part.new_zeros(*bases.shape, *part.shape[1:])
        whole[bases] = part
        return whole.transpose(1, 2)
