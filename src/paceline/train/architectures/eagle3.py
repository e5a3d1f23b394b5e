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

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.train.architectures._base import Architecture
from paceline.train.batches import Batch
from paceline.train.draft_attention import Pair, draft_attention
from paceline.train.teacher import Teacher

SPREAD = 0.02
"""Standard deviation of fresh weights."""


def build(teacher: Teacher, *, depths: int = 5, draft_vocab: int = 8192) -> Eagle3:
    """A fresh EAGLE-3 drafter, its layer of the target's own shape.

    depths: drafted tokens along one path that it is trained for. draft_vocab: tokens that it can propose, the
    most frequent ones; fewer make it faster. Raises ConfigError.
    """
    if not 1 <= depths <= 16:
        raise ConfigError(f"depths is {depths}, allowed: 1 to 16")
    if not teacher.layer_ids:
        raise ConfigError("eagle3 reads hidden states of inner layers; make data that has some (--taps)")
    return Eagle3(teacher, depths, teacher.likeliest(min(draft_vocab, len(teacher.counts))))


class Eagle3(Architecture):
    """The drafter; the embedding is the target's and is not trained."""

    def __init__(self, teacher: Teacher, depths: int, vocabulary: Tensor) -> None:
        super().__init__()
        config = teacher.config
        self._config, self._layer_ids = config, teacher.layer_ids
        self.depths = depths
        self.register_buffer("vocabulary", vocabulary, persistent=False)
        self.register_buffer("embedding", teacher.embedding, persistent=False)
        self.fc = nn.Linear(len(self._layer_ids) * config.hidden, config.hidden, bias=False)
        self.layers = nn.ModuleList([Layer(config)])
        self.norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden, len(vocabulary), bias=False)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=SPREAD)
        with torch.no_grad():
            # Taps differ in size by orders of magnitude; the layer should begin with features of size 1.
            scale = torch.tensor([1 / tap for tap in teacher.scales[:-1]]).repeat_interleave(config.hidden)
            self.fc.weight.normal_(std=self.fc.in_features**-0.5).mul_(scale)
            # What the last tap holds comes through as it is: the target's own way to its next token.
            self.fc.weight[:, -config.hidden :] += torch.eye(config.hidden) / teacher.scales[-2]
            rows = teacher.head.cpu()[vocabulary].float()
            self.lm_head.weight.copy_(rows)
            # With the target's rows as they are, logits of features that mean nothing yet would be far apart.
            self.norm.weight.fill_(rows.square().sum(-1).mean() ** -0.5)

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`."""
        return self.lm_head.weight

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        # The residual stream stays in float32 where products are made in bfloat16.
        features = self.fc(batch.states[:, :, :-1].flatten(2).float()).float()
        seen: list[Pair] = []
        for depth in range(self.depths):
            tokens = functional.embedding(batch.shifted(depth + 1), self.embedding)
            features = self.layers[0](tokens.float(), features, seen)
            yield self.norm(features[batch.bases(depth)])

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
        c = self._config
        config = {
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "draft_vocab_size": len(ids),
            "target_hidden_size": c.hidden,
            "eagle_aux_hidden_state_layer_ids": self._layer_ids,
            # Never left out: engines guess differently where these are missing.
            "norm_before_residual": False,
            "norm_before_fc": False,
            "fc_norm": False,
            "norm_output": False,
            "transformer_layer_config": {
                "model_type": "llama",
                "hidden_size": c.hidden,
                "intermediate_size": c.ffn,
                "num_hidden_layers": 1,
                "num_attention_heads": c.heads,
                "num_key_value_heads": c.kv_heads,
                "head_dim": c.head_dim,
                "hidden_act": "silu",
                "rms_norm_eps": c.norm_eps,
                "max_position_embeddings": c.context,
                "rope_theta": c.rope_theta,
                "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
                "attention_bias": False,
                "mlp_bias": False,
                "tie_word_embeddings": False,
                "vocab_size": c.vocab_size,
            },
            "speculators_config": {
                "algorithm": "eagle3",
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": self.depths}],
                "verifier": {"name_or_path": model, "architectures": []},
            },
        }
        return config, tensors


class Layer(nn.Module):
    """A Llama layer that reads an embedding beside the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden, config.norm_eps
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.hidden_norm = nn.RMSNorm(hidden, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = Mlp(hidden, config.ffn)

    def forward(self, tokens: Tensor, features: Tensor, seen: list[Pair]) -> Tensor:
        """What one depth makes of embedded tokens and features, [B, L, H] each. seen: keys and values of the
        depths before, to which this one's are added."""
        read = torch.cat((self.input_layernorm(tokens), self.hidden_norm(features)), -1)
        features = features + self.self_attn(read, seen)
        out: Tensor = features + self.mlp(self.post_attention_layernorm(features))
        return out


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


class Attention(nn.Module):
    """Grouped queries over the slots of depth 0 up to a base, and the slots of one draft behind it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._dim, self._groups = config.head_dim, config.heads // config.kv_heads
        width, q, kv = 2 * config.hidden, config.heads * self._dim, config.kv_heads * self._dim
        self.q_proj = nn.Linear(width, q, bias=False)
        self.k_proj = nn.Linear(width, kv, bias=False)
        self.v_proj = nn.Linear(width, kv, bias=False)
        self.o_proj = nn.Linear(q, config.hidden, bias=False)
        exponents = -torch.arange(0, self._dim, 2) / self._dim
        self.register_buffer("_frequencies", config.rope_theta**exponents, persistent=False)

    def forward(self, read: Tensor, seen: list[Pair]) -> Tensor:
        """What the slots of one depth attend to: [B, L, H]. read: [B, L, 2 H]."""
        depth = len(seen)
        q = self._rotated(self._heads(self.q_proj(read)), depth)
        k = self._rotated(self._heads(self.k_proj(read)), depth).repeat_interleave(self._groups, 1)
        v = self._heads(self.v_proj(read)).repeat_interleave(self._groups, 1)
        seen.append((k, v))
        attended = draft_attention(q, seen)
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self._dim)).transpose(1, 2)

    def _rotated(self, x: Tensor, depth: int) -> Tensor:
        """Rotary positions (Su et al., 2021) on the pairs (i, i + dim/2) of x [B, heads, L, dim]. The slot of
        depth j behind base t stands at t + j."""
        positions = torch.arange(x.shape[2], device=x.device) + depth
        angles = positions[:, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        left, right = x.float().chunk(2, -1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)
