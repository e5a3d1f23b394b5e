"""A recurrent drafter on the CPU kernels.

The layers' weights are rounded to 4 bits, Q4_1, the head's to 8, Q8_0: a trained one says nearly the same
then (docs/log.md), and on a CPU what it costs is reading them. Embeddings are the target's own packed ones.
`paceline.trained.redrafter_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from paceline.core import LAST
from paceline.kernels.packing import Embedding
from paceline.models.drafter_folder import Floats
from paceline.models.redrafter_folder import RedrafterWeights
from paceline.trained._fit import REMEMBERED, check_target, check_widths, product
from paceline.trained.heads_reference import unit


class NativeRedrafter:
    """See `paceline.drafters.redrafter.RecurrentModel`."""

    def __init__(self, weights: RedrafterWeights, embedding: Embedding, *, threads: int = 1) -> None:
        """embedding: the target's. threads: shared with a target of as many. Raises IncompatibleDrafter for
        a drafter that was not trained for such a target."""
        config = weights.config
        check_target(config.vocab_size, config.hidden, embedding)
        check_widths({"hidden_size": config.hidden, "intermediate_size": config.inner})
        self.tap = LAST
        self.token_ids = weights.token_ids
        self._inner = config.inner
        self._embed = lru_cache(REMEMBERED)(lambda token: unit(embedding.row(token)))
        self._layers = []
        for layer in range(config.layers):
            gate, up, down = (
                weights.tensors[f"layers.{layer}.{name}.weight"] for name in ("gate", "up", "down")
            )
            self._layers.append(
                (product(np.concatenate([gate, up]), threads, "Q4_1"), product(down, threads, "Q4_1"))
            )
        self._head = product(weights.tensors["lm_head.weight"], threads)

    def forward(self, states: Floats, tokens: Sequence[int]) -> tuple[Floats, Floats]:
        """Logits float32 [N, D] of what follows one more token behind each of N states, float32 [N, hidden],
        and the states behind it."""
        beside: tuple[Floats, ...] = (np.stack([self._embed(token) for token in tokens]),)
        for open_up, down in self._layers:
            opened = open_up(np.concatenate([*beside, unit(states)], axis=1))
            gate, up = opened[:, : self._inner], opened[:, self._inner :]
            gate = gate * (1 + np.tanh(gate / 2)) / 2  # SiLU, without powers that are too large
            states = states + down(gate * up)
            beside = ()
        return self._head(states), states
