"""An EAGLE-3 drafter on the CPU kernels, with a paged cache of its own.

Its first layer is one of `paceline.kernels`' decoder layers that reads embeddings beside the residual
stream, which starts as a feature. Weights are rounded to 8 bits with a scale per 32, Q8_0; the embeddings are
the target's own packed ones. `paceline.trained.eagle3_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import kernels
from paceline.core import Draft
from paceline.errors import IncompatibleDrafter
from paceline.kernels.packing import LANES, Embedding, pack, quantise_weights
from paceline.models.drafter_folder import Floats
from paceline.models.eagle3_folder import Eagle3Weights
from paceline.targets.weights import aligned, interleave
from paceline.trained._fit import TYPE, check_target, check_widths, product
from paceline.trained.eagle3_reference import norm

_MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The kernels' names of a layer's matrices, and the folder's."""


class NativeEagle3:
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
        self.taps = tuple(f"hidden.{id}" for id in config.layers_of(layers))
        self.token_ids = weights.token_ids
        self.page_tokens = LANES
        self.cache_tokens = -(-cache_tokens // LANES) * LANES
        self._config = config
        self._norms = {name: tensor for name, tensor in weights.tensors.items() if tensor.ndim == 1}
        fc = weights.tensors["fc.weight"]
        self._fc = product(fc)
        frequencies = config.frequencies
        self._model = kernels.make_model(
            {
                "hidden": config.hidden,
                "layers": config.layers,
                "heads": config.heads,
                "kv_heads": config.kv_heads,
                "head_dim": config.head_dim,
                "ffn": config.ffn,
                "vocab_size": config.vocab_size,
                "outputs": config.draft_vocab_size,
                "norm_eps": config.norm_eps,
                "gelu": False,
                "embedding_scale": 1.0 if "embed_tokens.weight" in weights.tensors else embedding.scale,
                "query_scale": config.head_dim**-0.5,
                "takes_features": True,
            },
            _packed(weights, embedding),
            windows=[0] * config.layers,
            frequencies=np.stack([frequencies, frequencies]),
            cache_pages=self.cache_tokens // LANES,
            max_positions=max_positions + LANES,
            threads=threads,
        )

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
        scored = len(draft.scored)
        logits = np.empty((max(1, scored), len(self.token_ids)), np.float32)
        fed_on = np.empty(features.shape if scored else (0, self._config.hidden), np.float32)
        self._model.forward(
            draft.slots,
            draft.offsets,
            draft.starts,
            draft.tokens,
            draft.parents,
            draft.positions,
            draft.scored,
            logits,
            [self._config.layers] if scored else [],
            [fed_on] if scored else [],
            features,
        )
        return logits[:scored], self._norm(fed_on, "norm.weight") if self._config.norm_output else fed_on

    def commit(self, draft: Draft) -> None:
        """Keep the known nodes of the last `forward`; drafted ones never are."""
        firsts = draft.offsets.tolist()
        known = [root + 1 - first for root, first in zip(draft.roots, firsts, strict=False)]
        self._model.commit(known, [[]] * len(known))

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._model.release(list(slots))

    def read_cache(self, slot: int) -> tuple[Floats, Floats]:
        """Committed keys and values of the first layer, float32 [length, kv_heads, head_dim] each. For
        tests."""
        shape = (self._model.length(slot), self._config.kv_heads, self._config.head_dim)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._model.read_cache(slot, 0, keys, values)
        return keys, values

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

    def add(name: str, values: NDArray[np.float32]) -> None:
        if values.ndim == 1:
            tensors[name] = aligned(np.ascontiguousarray(values).view(np.uint8))
        else:
            tensors[name] = aligned(pack(TYPE, quantise_weights(values)))
            tensors[name + ".type"] = TYPE

    if "embed_tokens.weight" in found:
        add("token_embd.weight", found["embed_tokens.weight"])
    add(
        "feature_norm.weight" if config.norm_before_residual else "blk.0.attn_norm.weight",
        found["layers.0.hidden_norm.weight"],
    )
    add("blk.0.token_norm.weight", found["layers.0.input_layernorm.weight"])
    for number in range(config.layers):
        ours, at = f"blk.{number}.", f"layers.{number}."
        if number:
            add(ours + "attn_norm.weight", found[at + "input_layernorm.weight"])
        add(ours + "ffn_norm.weight", found[at + "post_attention_layernorm.weight"])
        for name, theirs in _MATRICES.items():
            values = found[f"{at}{theirs}.weight"]
            add(
                f"{ours}{name}.weight",
                interleave(values, config.head_dim) if name in ("attn_q", "attn_k") else values,
            )
    add("output_norm.weight", found["norm.weight"])
    add("output.weight", found["lm_head.weight"])
    return tensors
