"""A DSpark drafter on the CPU kernels: DFlash's pass, then a Markov head and a confidence head.

What the token right before a place adds to its logits takes a product of its own, for the tokens that are
asked for; what it adds to the confidence is worked out for all tokens beforehand.
`paceline.trained.dspark_reference` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.kernels.packing import Embedding
from paceline.models.drafter_folder import Floats
from paceline.models.dspark_folder import CONFIDENCE, CONFIDENCE_BIAS, MARKOV_IN, MARKOV_OUT, DSparkWeights
from paceline.trained._fit import check_widths, product
from paceline.trained.dflash import NativeDFlash


class NativeDSpark(NativeDFlash):
    """See `paceline.drafters._blocks.MarkovModel`. Not for use from two threads at once."""

    def __init__(
        self, weights: DSparkWeights, embedding: Embedding, head: Embedding, layers: int, *, cache_tokens: int
    ) -> None:
        """See `NativeDFlash`. Raises IncompatibleDrafter."""
        check_widths({"markov_rank": weights.config.rank})
        super().__init__(weights, embedding, head, layers, cache_tokens=cache_tokens)
        config, found = weights.config, weights.tensors
        self._rows, self._bias = found[MARKOV_IN], product(found[MARKOV_OUT])
        self.trust = np.zeros(config.vocab_size, np.float32)
        self._confidence = np.zeros(config.hidden, np.float32)
        self._certain: float = np.inf  # what has no confidence head is always confident
        if config.confidence:
            of_state, of_token = np.split(found[CONFIDENCE][0], [config.hidden])
            self._confidence, self._certain = of_state, float(found[CONFIDENCE_BIAS][0])
            if config.confidence_tokens:
                self.trust = self._rows @ of_token

    def draft(self, slots: Sequence[int], tokens: Sequence[int]) -> tuple[Floats, Floats]:
        """What is drafted behind each sequence's next token, without what tokens add to it: logits float32
        [B, depths, D], and of the confidences float32 [B, depths]. The cache does not change."""
        read = self._denoised(slots, tokens)
        # Not a product of matrices, whose bits may depend on the number of rows.
        certain = (read * self._confidence).sum(-1) + self._certain
        shape = len(slots), self.depths
        return self._head(read).reshape(*shape, -1), certain.reshape(shape).astype(np.float32)

    def bias(self, tokens: Sequence[int]) -> Floats:
        """What tokens add to the logits of the place behind them, float32 [n, D]."""
        return self._bias(self._rows[list(tokens)])
