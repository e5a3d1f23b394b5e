"""MTP: a module that reads the target's last hidden state and the next token, as models have that were
trained to predict several tokens.

Slot t reads token t + 1 and the target's last hidden state at t, each behind a norm of its own and put
together by `input_proj`; what one decoder layer makes of them predicts token t + 2 with the target's own
head, and stands in for the state at t + 1 when the next slot drafts on. Training unrolls this as EAGLE-3's
does, so that the one module serves all depths; the report trains one module for each, beside the target
itself.

Sources: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024 (arXiv 2412.19437); Li et al., "EAGLE-3", 2025
(arXiv 2503.01840), for the unrolling. Names of tensors and settings: the speculators library, whose layer is
Qwen3's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.models.mtp_folder import MtpConfig, speculators_form
from paceline.train.architectures import eagle3
from paceline.train.architectures._decoder import SPREAD, LikeTarget, Mlp
from paceline.train.batches import Batch
from paceline.train.draft_attention import Pair
from paceline.train.teacher import Teacher


def build(teacher: Teacher, *, depths: int = 5, draft_vocab: int = 8192) -> Mtp:
    """A fresh MTP module, its layer as wide as the target's.

    depths: drafted tokens along one path that it is trained for. draft_vocab: tokens that it can propose, the
    most frequent ones; fewer make it faster. Raises ConfigError.
    """
    if not 1 <= depths <= 16:
        raise ConfigError(f"depths is {depths}, allowed: 1 to 16")
    return Mtp(teacher, depths, draft_vocab)


class Mtp(LikeTarget):
    """The module."""

    def __init__(self, teacher: Teacher, depths: int, draft_vocab: int) -> None:
        super().__init__(teacher, depths, draft_vocab)
        self._teacher = teacher
        self.mtp_layers = nn.ModuleList([Module(teacher.config)])
        with torch.no_grad():
            # As `DecoderDrafter` has it: logits of states that mean nothing yet should not be far apart.
            self.mtp_layers[0].final_layernorm.weight.fill_(float(self.head.square().sum(-1).mean()) ** -0.5)

    @property
    def head(self) -> Tensor:
        """See `Architecture.head`: the target's own rows, which are not trained."""
        return self._teacher.head[self.vocabulary].float()

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        states = self._teacher.last(batch.states[:, :, -1])
        seen: list[Pair] = []
        for depth in range(self.depths):
            tokens = functional.embedding(batch.shifted(depth + 1), self.embedding)
            states = self.mtp_layers[0](tokens.float(), states, seen)
            yield states[batch.bases(depth)]

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of the speculators form, with the reduced vocabulary that it does not know."""
        config = MtpConfig(**self.shape, target_layers=self._config.layers, draft_tokens=self.depths)
        return speculators_form(config, model), self.tensors(weights)


class Module(nn.Module):
    """What puts a token and a state together, a Qwen3 layer, and a norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden, config.norm_eps
        self.hidden_layernorm = nn.RMSNorm(hidden, eps)
        self.token_layernorm = nn.RMSNorm(hidden, eps)
        self.input_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = Mlp(hidden, config.ffn)
        self.final_layernorm = nn.RMSNorm(hidden, eps)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=SPREAD)
        with torch.no_grad():
            # A state comes through as it is: the target's own way to its next token.
            self.input_proj.weight[:, hidden:] += torch.eye(hidden)

    def forward(self, tokens: Tensor, states: Tensor, seen: list[Pair]) -> Tensor:
        """What one depth makes of embedded tokens and states, [B, L, H] each. seen: keys and values of the
        depths before, to which this one's are added."""
        read = torch.cat((self.token_layernorm(tokens), self.hidden_layernorm(states)), -1)
        # The residual stream stays in float32 where products are made in bfloat16.
        x = self.input_proj(read).float()
        x = x + self.self_attn(self.input_layernorm(x), seen)
        out: Tensor = self.final_layernorm(x + self.mlp(self.post_attention_layernorm(x)))
        return out


class Attention(eagle3.Attention):
    """The same with norms of queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.hidden)
        self.q_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, config.norm_eps)

    def queries(self, read: Tensor) -> Tensor:
        """See `paceline.train.architectures.eagle3.Attention.queries`."""
        queries = super().queries(read)
        normed: Tensor = self.q_norm(queries.float())
        return normed.to(queries.dtype)

    def keys(self, read: Tensor) -> Tensor:
        """See `paceline.train.architectures.eagle3.Attention.keys`."""
        keys = super().keys(read)
        normed: Tensor = self.k_norm(keys.float())
        return normed.to(keys.dtype)
