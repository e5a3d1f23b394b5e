"""A drafter's decoder layers on the CPU kernels, with a paged cache of their own.

Their residual stream starts as a feature. Of the cache what is known is kept, and never what was drafted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import kernels
from paceline.core import Draft
from paceline.kernels.packing import LANES, pack, quantise_weights
from paceline.models.drafter_folder import DecoderConfig, Floats
from paceline.targets.weights import aligned, interleave
from paceline.trained._fit import TYPE

MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The kernels' names of a layer's matrices, and the folder's."""


class PagedLayers:
    """The layers and the head of one drafter. Not for use from two threads at once."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: int,
        tensors: Mapping[str, Any],
        *,
        embedding_scale: float,
        threads: int,
        cache_tokens: int,
        max_positions: int,
    ) -> None:
        """tensors: as the kernels want them, by their names; cache_tokens: slots of all sequences together,
        by whole pages; max_positions: slots that one may have."""
        self.page_tokens = LANES
        self.cache_tokens = -(-cache_tokens // LANES) * LANES
        self._shape, self._layers = config, layers
        frequencies = config.frequencies
        self._model = kernels.make_model(
            {
                "hidden": config.hidden,
                "layers": layers,
                "heads": config.heads,
                "kv_heads": config.kv_heads,
                "head_dim": config.head_dim,
                "ffn": config.ffn,
                "vocab_size": config.vocab_size,
                "outputs": config.draft_vocab_size,
                "norm_eps": config.norm_eps,
                "gelu": False,
                "embedding_scale": embedding_scale,
                "query_scale": config.head_dim**-0.5,
                "takes_features": True,
            },
            tensors,
            windows=[0] * layers,
            frequencies=np.stack([frequencies, frequencies]),
            cache_pages=self.cache_tokens // LANES,
            max_positions=max_positions + LANES,
            threads=threads,
        )

    def run(self, draft: Draft, features: Floats) -> tuple[Floats, Floats]:
        """Logits float32 [S, D] of the scored nodes, and the residual stream of every node behind the last
        layer, float32 [N, hidden]; where no node is scored only the cache is filled, and nothing is given
        back.

        features: float32 [N, hidden], contiguous. Raises CapacityError if the cache is too full, and then
        nothing has changed.
        """
        scored = len(draft.scored)
        logits = np.empty((max(1, scored), self._shape.draft_vocab_size), np.float32)
        reached = np.empty(features.shape if scored else (0, self._shape.hidden), np.float32)
        self._model.forward(
            draft.slots,
            draft.offsets,
            draft.starts,
            draft.tokens,
            draft.parents,
            draft.positions,
            draft.scored,
            logits,
            [self._layers] if scored else [],
            [reached] if scored else [],
            features,
        )
        return logits[:scored], reached

    def commit(self, draft: Draft) -> None:
        """Keep the known nodes of the last pass; drafted ones never are."""
        firsts = draft.offsets.tolist()
        known = [root + 1 - first for root, first in zip(draft.roots, firsts, strict=False)]
        self._model.commit(known, [[]] * len(known))

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._model.release(list(slots))

    def read_cache(self, slot: int) -> tuple[Floats, Floats]:
        """Committed keys and values of the first layer, float32 [length, kv_heads, head_dim] each. For
        tests."""
        shape = (self._model.length(slot), self._shape.kv_heads, self._shape.head_dim)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._model.read_cache(slot, 0, keys, values)
        return keys, values


def packed(values: NDArray[np.float32], name: str) -> dict[str, Any]:
    """A matrix, rounded to 8 bits, or a vector, as the kernels want it."""
    if values.ndim == 1:
        return {name: aligned(np.ascontiguousarray(values).view(np.uint8))}
    return {name: aligned(pack(TYPE, quantise_weights(values))), name + ".type": TYPE}


def packed_layer(parts: Mapping[str, Floats], number: int, head_dim: int) -> dict[str, Any]:
    """The matrices of layer `number` from its tensors by the folder's names, and those of its norms that are
    the same in every kind of layer."""
    at = f"blk.{number}."
    tensors = packed(parts["post_attention_layernorm"], at + "ffn_norm.weight")
    for name, theirs in MATRICES.items():
        turned = name in ("attn_q", "attn_k")
        values = parts[theirs]
        tensors |= packed(interleave(values, head_dim) if turned else values, f"{at}{name}.weight")
        if (theirs := theirs.replace("_proj", "_norm")) in parts:
            tensors |= packed(interleave(parts[theirs], head_dim), f"{at}{name}_norm.weight")
    return tensors
