"""A draft model: a whole small model of Llama's form, with the target's tokens, taught the target's law.

It reads the text alone and none of the target's hidden states, so one pass over an answer is what drafting
behind each of its tokens would be, and every token is learnt from once, at whatever depth a draft has it.

Source: Zhou et al., "DistillSpec: Improving Speculative Decoding via Knowledge Distillation", 2023 (arXiv
2310.08461), over the target's own answers; those of the draft model itself are not mixed in. The layers may
begin as some of the target's own: Sanh et al., "DistilBERT", 2019 (arXiv 1910.01108). Several depths of one
draft model with one norm and one head: Kavehzadeh et al., "S2D: Sorted Speculative Decoding For More
Efficient Deployment of Nested Large Language Models", 2024 (arXiv 2407.01955).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.kernels.packing import GROUP, dequantise
from paceline.models.config import ROPE_FACTORS, ModelConfig
from paceline.models.llama_folder import EMBEDDING, described, gguf_name, llama_config, shapes
from paceline.models.registry import resolve
from paceline.targets.weights import PackedWeights, halves, load_weights
from paceline.train.architectures._base import Architecture
from paceline.train.architectures._decoder import SPREAD, Mlp, rotary_frequencies, rotated
from paceline.train.batches import Batch
from paceline.train.losses import behind
from paceline.train.teacher import Teacher


def build(
    teacher: Teacher,
    *,
    layers: int = 4,
    hidden: int = 0,
    layers_of: str = "",
    exits: str = "",
    depths: int = 4,
) -> DraftModel:
    """A fresh draft model, its layers like the target's.

    layers: decoder layers. hidden: width of its hidden states, heads and feed-forward part in proportion; 0:
    the target's, and its embeddings and head begin as the target's. layers_of: a known model's name or a GGUF
    file of Llama's form with the target's tokens, such as the target itself; the draft model begins as its
    embeddings, head and so many of its layers, evenly spread. exits: numbers of first layers with x between,
    as in 1x2; behind these the norm and the head learn the target's law, too, so that those layers are draft
    models themselves. depths: drafted tokens along one path that it is measured with. Raises ConfigError, and
    ModelFileError for the file.
    """
    for name, value, most in (("layers", layers, 64), ("depths", depths, 16)):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}, allowed: 1 to {most}")
    if layers_of and hidden:
        raise ConfigError(f"hidden is {hidden}, but the layers of {layers_of} have a width of their own")
    if hidden % GROUP or not 0 <= hidden <= 1 << 14:
        raise ConfigError(f"hidden is {hidden}, allowed: multiples of {GROUP} up to {1 << 14}, or 0")
    read = _exits(exits, layers)
    if layers_of:
        weights = load_weights(resolve(layers_of))
        model = DraftModel(_shortened(weights, layers, layers_of, teacher), depths, read)
        model.load_state_dict(_taken(weights, model.config))
        return model
    model = DraftModel(_like(teacher, layers, hidden), depths, read)
    if not hidden:
        model.begin_as(teacher)
    return model


class DraftModel(Architecture):
    """The model. Its parameters have the names that transformers gives them. exits: after how many layers it
    is read out in training, ascending; the last are all."""

    def __init__(self, config: ModelConfig, depths: int, exits: Sequence[int]) -> None:
        super().__init__()
        self.config, self.depths, self._exits = config, depths, exits
        self.register_buffer("vocabulary", torch.arange(config.vocab_size), persistent=False)
        self.model = Body(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=SPREAD)

    def begin_as(self, teacher: Teacher) -> None:
        """Take the target's embeddings and head."""
        with torch.no_grad():
            self.model.embed_tokens.weight.copy_(teacher.embedding.float())
            self.head.copy_(teacher.head.float())
            # With the norm as it is, logits of features that mean nothing yet would be far apart.
            self.model.norm.weight.fill_(teacher.head.float().square().sum(-1).mean() ** -0.5)

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`."""
        head: Tensor = self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight
        return head

    @property
    def lessons(self) -> Sequence[int]:
        """Depth 0 alone, behind each exit: it has every token of an answer, with all before it known."""
        return (0,) * len(self._exits)

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`: of all layers."""
        (read,) = self.model(batch.tokens, self._exits[-1:])
        for depth in range(self.depths):
            yield read[behind(batch.bases(depth), depth + 1)]

    def study(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.study`: of each exit."""
        for read in self.model(batch.tokens, self._exits):
            yield read[behind(batch.bases(0), 1)]

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """All of the target's."""
        return torch.arange(len(tensors[EMBEDDING]))

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder as transformers has it, see `paceline.models.llama_folder`."""
        tensors = {name: weights[name].to(torch.bfloat16) for name in shapes(self.config)}
        return described(self.config), tensors


class Body(nn.Module):
    """All but the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.layers)])
        self.norm = nn.RMSNorm(config.hidden, config.norm_eps)

    def forward(self, tokens: Tensor, exits: Sequence[int]) -> Iterator[Tensor]:
        """What the head reads behind each token of texts int64 [B, L], after so many layers: float32
        [B, L, H]."""
        x = self.embed_tokens(tokens)
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number in exits:
                yield self.norm(x)


class Layer(nn.Module):
    """A Llama layer. The residual stream stays in float32 where products are made in bfloat16."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.mlp = Mlp(config.hidden, config.ffn)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, H] to [B, L, H]."""
        x = x + self.self_attn(self.input_layernorm(x))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Attention(nn.Module):
    """Grouped queries over the text so far."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._dim, hidden = config.head_dim, config.hidden
        wide, narrow = config.heads * self._dim, config.kv_heads * self._dim
        self.q_proj = nn.Linear(hidden, wide, bias=False)
        self.k_proj = nn.Linear(hidden, narrow, bias=False)
        self.v_proj = nn.Linear(hidden, narrow, bias=False)
        self.o_proj = nn.Linear(wide, hidden, bias=False)
        frequencies = rotary_frequencies(config) / config.rope_scaling
        self.register_buffer("_frequencies", frequencies, persistent=False)

    def forward(self, read: Tensor) -> Tensor:
        """[B, L, H] to [B, L, H]."""
        q, k, v = (self._heads(part(read)) for part in (self.q_proj, self.k_proj, self.v_proj))
        angles = torch.arange(read.shape[1], device=read.device)[:, None] * self._frequencies
        q, k = (rotated(part, angles).to(v.dtype) for part in (q, k))
        # Padding stands behind the texts, where nothing looks.
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self._dim)).transpose(1, 2)


def _exits(text: str, layers: int) -> tuple[int, ...]:
    """Where the model is read out, its end among them. Raises ConfigError."""
    parts = text.split("x") if text else []
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= layers for part in parts):
        raise ConfigError(f"exits is {text!r}, allowed: numbers from 1 to {layers} with x between")
    return tuple(sorted({*map(int, parts), layers}))


def _like(teacher: Teacher, layers: int, hidden: int) -> ModelConfig:
    """A model with layers like the target's, so wide."""
    target = teacher.config
    width = hidden or target.hidden
    heads = max(1, round(target.heads * width / target.hidden))
    return llama_config(
        name="draft",
        hidden=width,
        layers=layers,
        heads=heads,
        kv_heads=gcd(heads, target.kv_heads),
        head_dim=target.head_dim,
        ffn=GROUP * max(1, round(target.ffn * width / target.hidden / GROUP)),
        vocab_size=target.vocab_size,
        context=target.context,
        rope_theta=target.rope_theta,
        rope_scaling=target.rope_scaling,
        norm_eps=target.norm_eps,
        # A narrow head of its own would be most of the model.
        tied=bool(hidden) or teacher.head is teacher.embedding,
    )


def _shortened(weights: PackedWeights, layers: int, name: str, teacher: Teacher) -> ModelConfig:
    """A model with some layers of another. Raises ConfigError."""
    config = weights.config
    if config.architecture != "llama" or ROPE_FACTORS in weights.tensors:
        raise ConfigError(f"layers_of: {name} is not of Llama's plain form, whose layers draft models have")
    if config.vocab_size != teacher.config.vocab_size:
        raise ConfigError(
            f"layers_of: {name} has {config.vocab_size} tokens, the target {teacher.config.vocab_size}"
        )
    if layers > config.layers:
        raise ConfigError(f"layers is {layers}, and {name} has {config.layers}")
    return replace(config, name="draft", layers=layers, rope_interleaved=False)


def _taken(weights: PackedWeights, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a model with so many of these layers, the first and the last among them."""
    chosen = np.linspace(0, weights.config.layers - 1, config.layers).round().astype(int).tolist()
    found = {}
    for name, shape in shapes(config).items():
        own = gguf_name(name)
        if own.startswith("blk."):
            number, part = own.removeprefix("blk.").split(".", 1)
            own = f"blk.{chosen[int(number)]}.{part}"
        packed = weights.tensors[own]
        if len(shape) == 1:
            data = packed.view(np.float32)
        else:
            rows, columns = shape
            data = dequantise(weights.tensors[own + ".type"], rows, columns, packed)
            if "q_proj" in name or "k_proj" in name:
                data = halves(data, config.head_dim)
        found[name] = torch.from_numpy(np.array(data))
    return found
