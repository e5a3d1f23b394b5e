"""An MTP module on the CPU kernels, with a paged cache of its own.

Its layer is one of `paceline.kernels`' decoder layers whose residual stream starts as what `input_proj` makes
of a token and a state. Weights are rounded to 8 bits with a scale per 32, Q8_0; embeddings and head are the
target's. `paceline.trained.mtp_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from paceline.core import LAST, Draft
from paceline.kernels.packing import Embedding, dequantise
from paceline.models.drafter_folder import Floats
from paceline.models.mtp_folder import MtpWeights
from paceline.trained._fit import REMEMBERED, check_target, check_widths, product
from paceline.trained._layers import PagedLayers, packed, packed_layer
from paceline.trained.eagle3_reference import norm


class NativeMtp(PagedLayers):
    """See `paceline.drafters._features.FeatureModel`. Not for use from two threads at once."""

    taps: Sequence[str] = (LAST,)

    def __init__(
        self,
        weights: MtpWeights,
        embedding: Embedding,
        head: Embedding,
        *,
        threads: int,
        cache_tokens: int,
        max_positions: int,
    ) -> None:
        """embedding, head: the target's; the rest as in `PagedLayers`.

        Raises IncompatibleDrafter for a module that was not trained for such a target.
        """
        config = weights.config
        check_target(config.vocab_size, config.hidden, embedding)
        check_widths(
            {
                "hidden_size": config.hidden,
                "head_dim times its heads": config.heads * config.head_dim,
                "intermediate_size": config.ffn,
            }
        )
        super().__init__(
            config,
            1,
            _packed(weights, embedding, head),
            embedding_scale=embedding.scale,
            threads=threads,
            cache_tokens=cache_tokens,
            max_positions=max_positions,
        )
        self.token_ids = weights.token_ids
        self._eps, self._parts = config.norm_eps, weights.parts
        self._row = lru_cache(REMEMBERED)(embedding.row)
        self._project = product(weights.parts["input_proj"])

    def fuse(self, hidden_states: Sequence[Floats]) -> Floats:
        """The target's last hidden states as they are, float32 [N, hidden]."""
        (last,) = hidden_states
        return np.ascontiguousarray(last, np.float32)

    def forward(self, draft: Draft, features: Floats) -> tuple[Floats, Floats]:
        """Logits float32 [S, D] of the scored nodes, and what every node would feed on, float32 [N, hidden];
        where no node is scored only the cache is filled, and nothing is given back.

        features: float32 [N, hidden], states of the target or fed on. Raises CapacityError if the cache is
        too full, and then nothing has changed.
        """
        embedded = np.stack([self._row(token) for token in draft.tokens.tolist()])
        read = (self._norm(embedded, "token_layernorm"), self._norm(features, "hidden_layernorm"))
        projected = self._project(np.concatenate(read, axis=-1))
        logits, reached = self.run(draft, np.ascontiguousarray(projected))
        return logits, self._norm(reached, "final_layernorm")

    def _norm(self, x: Floats, name: str) -> Floats:
        return norm(x, self._parts[name], self._eps)


def _packed(weights: MtpWeights, embedding: Embedding, head: Embedding) -> dict[str, Any]:
    """The tensors as the kernels want them, by their names."""
    config, parts = weights.config, weights.parts
    tensors: dict[str, Any] = {
        "token_embd.weight": embedding.packed,
        "token_embd.weight.type": embedding.type,
        **packed(parts["input_layernorm"], "blk.0.attn_norm.weight"),
        **packed_layer(parts, 0, config.head_dim),
        **packed(parts["final_layernorm"], "output_norm.weight"),
    }
    if np.array_equal(weights.token_ids, np.arange(head.vocab_size)):
        return tensors | {"output.weight": head.packed, "output.weight.type": head.type}
    rows = dequantise(head.type, head.vocab_size, head.hidden, head.packed)[weights.token_ids]
    return tensors | packed(rows, "output.weight")
