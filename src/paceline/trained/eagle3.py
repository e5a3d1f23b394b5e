"""An EAGLE-3 drafter on the CPU kernels, with a paged cache of its own.

Its first layer is one of `paceline.kernels`' decoder layers that reads embeddings beside the residual
stream, which starts as a feature. Weights are rounded to 8 bits with a scale per 32, Q8_0; the embeddings are
the target's own packed ones. `paceline.trained.eagle3_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paceline.core import Draft
from paceline.errors import IncompatibleDrafter
from paceline.kernels.packing import Embedding
from paceline.models.drafter_folder import Floats
from paceline.models.eagle3_folder import Eagle3Weights
from paceline.trained._fit import check_target, check_widths, product
from paceline.trained._layers import PagedLayers, packed, packed_layer
from paceline.trained.eagle3_reference import norm


class NativeEagle3(PagedLayers):
    """See `paceline.drafters._features.FeatureModel`. Not for use from two threads at once."""

    def __init__(
        self,
        weights: Eagle3Weights,
        embedding: Embedding,
        layers: int,
        *,
        threads: int,
        cache_tokens: int,
        max_positions: int,
    ) -> None:
        """embedding: the target's; layers: how many it has; cache_tokens: slots of all sequences together, by
        whole pages; max_positions: slots that one may have.

        Raises IncompatibleDrafter for a drafter that was not trained for such a target.
        """
        config = weights.config
        _check(weights, embedding)
        super().__init__(
            config,
            config.layers,
            _packed(weights, embedding),
            embedding_scale=1.0 if "embed_tokens.weight" in weights.tensors else embedding.scale,
            threads=threads,
            cache_tokens=cache_tokens,
            max_positions=max_positions,
        )
        self.taps = tuple(f"hidden.{id}" for id in config.layers_of(layers))
        self.token_ids = weights.token_ids
        self._config = config
        self._norms = {name: tensor for name, tensor in weights.tensors.items() if tensor.ndim == 1}
        self._fc = product(weights.tensors["fc.weight"])

    def fuse(self, hidden_states: Sequence[Floats]) -> Floats:
        """Features float32 [N, hidden] of the target's hidden states, float32 [N, target_hidden] each, in the
        order of `taps`."""
        config = self._config
        if config.fc_norm:
            hidden_states = [
                self._norm(states, f"fc_norm.{place}.weight") for place, states in enumerate(hidden_states)
            ]
        joined = np.concatenate(hidden_states, axis=-1)
        return self._fc(self._norm(joined, "input_norm.weight") if config.norm_before_fc else joined)

    def forward(self, draft: Draft, features: Floats) -> tuple[Floats, Floats]:
        """Logits float32 [S, D] of the scored nodes, and what every node would feed on, float32 [N, hidden];
        where no node is scored only the cache is filled, and nothing is given back.

        features: float32 [N, hidden], contiguous. Raises CapacityError if the cache is too full, and then
        nothing has changed.
        """
        logits, reached = self.run(draft, features)
        return logits, self._norm(reached, "norm.weight") if self._config.norm_output else reached

    def _norm(self, x: Floats, name: str) -> Floats:
        return norm(x, self._norms[name], self._config.norm_eps)


def _check(weights: Eagle3Weights, embedding: Embedding) -> None:
    config = weights.config
    check_target(config.vocab_size, config.target_hidden, embedding)
    if "embed_tokens.weight" not in weights.tensors and config.hidden != embedding.hidden:
        raise IncompatibleDrafter(
            f"the drafter has no embeddings of its own and is {config.hidden} wide, the target's are "
            f"{embedding.hidden} wide"
        )
    check_widths(
        {
            "hidden_size": config.hidden,
            "target_hidden_size": config.target_hidden,
            "head_dim": config.head_dim,
            "intermediate_size": config.ffn,
        }
    )


def _packed(weights: Eagle3Weights, embedding: Embedding) -> dict[str, Any]:
    """The tensors as the kernels want them, by their names."""
    config, found = weights.config, weights.tensors
    tensors: dict[str, Any] = {
        "token_embd.weight": embedding.packed,
        "token_embd.weight.type": embedding.type,
    }

    if "embed_tokens.weight" in found:
        tensors |= packed(found["embed_tokens.weight"], "token_embd.weight")
    first = "feature_norm.weight" if config.norm_before_residual else "blk.0.attn_norm.weight"
    tensors |= packed(found["layers.0.hidden_norm.weight"], first)
    for number in range(config.layers):
        at = f"layers.{number}."
        parts = {
            name.removeprefix(at).removesuffix(".weight"): tensor
            for name, tensor in found.items()
            if name.startswith(at)
        }
        read = "attn_norm" if number else "token_norm"
        tensors |= packed(parts["input_layernorm"], f"blk.{number}.{read}.weight")
        tensors |= packed_layer(parts, number, config.head_dim)
    tensors |= packed(found["norm.weight"], "output_norm.weight")
    return tensors | packed(found["lm_head.weight"], "output.weight")
