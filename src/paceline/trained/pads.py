"""Pads on the target that they were trained for: it reads them in its own passes, and its head says what
stands where they are.

Of the head those rows are kept that can be proposed, rounded to 8 bits with a scale per 32, Q8_0, where they
are not all. `paceline.trained.pads_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.core import LookAhead
from paceline.kernels.packing import Embedding
from paceline.models.drafter_folder import Floats
from paceline.models.pads_folder import PadsWeights
from paceline.trained._fit import check_target, head_rows


class NativePads:
    """See `paceline.drafters._heads.Heads`."""

    def __init__(self, weights: PadsWeights, head: Embedding, look_ahead: LookAhead) -> None:
        """head, look_ahead: the target's. Raises IncompatibleDrafter for pads that were not trained for such
        a target."""
        config = weights.config
        check_target(config.vocab_size, config.hidden, head)
        self.tap = look_ahead(weights.embeddings)
        self.depths = config.depths
        self.token_ids = weights.token_ids
        self._head = head_rows(head, weights.token_ids)

    def forward(self, states: Floats, paths: Sequence[Sequence[int]]) -> Floats:
        """Logits float32 [N, D] of what follows each of N paths, of which only the lengths count. states:
        float32 [N, depths, hidden], what the head reads at the pads behind the token that each path's first
        one was drawn from."""
        places = [len(path) - 1 for path in paths]
        return self._head(np.ascontiguousarray(states[np.arange(len(paths)), places]))
