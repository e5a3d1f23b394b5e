"""Medusa's and Hydra's heads on the CPU kernels.

Weights are rounded to 8 bits with a scale per 32, Q8_0; embeddings are the target's own packed ones.
`paceline.trained.heads_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.core import LAST
from paceline.kernels.packing import Embedding
from paceline.models.drafter_folder import Floats
from paceline.models.heads_folder import HeadsWeights
from paceline.trained._fit import REMEMBERED, check_target, check_widths, product
from paceline.trained.heads_reference import unit


class NativeHeads:
    """See `paceline.drafters._heads.Heads`."""

    def __init__(self, weights: HeadsWeights, embedding: Embedding, *, threads: int = 1) -> None:
        """embedding: the target's. threads: shared with a target of as many. Raises IncompatibleDrafter for
        heads that were not trained for such a target."""
        config = weights.config
        _check(weights, embedding)
        self.tap = LAST
        self.depths = config.depths
        self.token_ids = weights.token_ids
        self._config = config
        self._biases = {name: tensor for name, tensor in weights.tensors.items() if tensor.ndim == 1}
        self._embedding = embedding
        self._embedded: dict[int, Floats] = {}
        """Embeddings that were read before; a text has few different tokens."""
        self._products = {
            name: product(tensor, threads) for name, tensor in weights.tensors.items() if tensor.ndim == 2
        }

    def forward(self, states: Floats, paths: Sequence[Sequence[int]]) -> Floats:
        """Logits float32 [N, D] of what follows each of N paths, behind the target's last hidden states,
        float32 [N, hidden]. A path begins with the token that the target drew from its state; of all others
        only their number counts, and to Hydra's heads which they are."""
        depths = np.array([len(path) - 1 for path in paths])
        blocks = {depth: np.flatnonzero(depths == depth) for depth in np.unique(depths).tolist()}
        read = np.empty_like(states)
        for depth, rows in blocks.items():
            read[rows] = self._block(states[rows], depth, [paths[row] for row in rows.tolist()])
        heads = {0: np.arange(len(paths))} if self._config.shared else blocks
        logits = np.empty((len(paths), len(self.token_ids)), np.float32)
        for head, rows in heads.items():
            logits[rows] = self._products[f"lm_heads.{head}.weight"](read[rows])
        return logits

    def _block(self, x: Floats, depth: int, paths: Sequence[Sequence[int]]) -> Floats:
        """What a block yields behind states [n, hidden] and paths as long as it reads."""
        for layer in range(self._config.layers):
            name = f"blocks.{depth}.layers.{layer}"
            read = x
            if layer == 0 and self._config.kind == "hydra":
                embedded = np.stack([self._embed(token) for path in paths for token in path])
                read = np.concatenate([x, embedded.reshape(len(x), -1)], axis=1)
            gate = self._products[name + ".weight"](read)
            if self._config.bias:
                gate = gate + self._biases[name + ".bias"]
            x = x + gate * (1 + np.tanh(gate / 2)) / 2  # SiLU, without powers that are too large
        return x

    def _embed(self, token: int) -> Floats:
        if token not in self._embedded:
            if len(self._embedded) == REMEMBERED:
                self._embedded.clear()
            self._embedded[token] = unit(self._embedding.row(token))
        return self._embedded[token]


def _check(weights: HeadsWeights, embedding: Embedding) -> None:
    config = weights.config
    check_target(config.vocab_size, config.hidden, embedding)
    check_widths({"hidden_size": config.hidden})
