"""A P-EAGLE drafter on the CPU kernels: EAGLE-3's layers, of which one pass drafts all tokens of a path.

`paceline.trained.peagle_reference` says what is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paceline.kernels.packing import Embedding
from paceline.models.eagle3_folder import Eagle3Weights
from paceline.trained.eagle3 import NativeEagle3
from paceline.trained.peagle_reference import mask_states


class NativePEagle(NativeEagle3):
    """See `paceline.drafters._features.ParallelModel`. Not for use from two threads at once."""

    def __init__(self, weights: Eagle3Weights, embedding: Embedding, layers: int, **sizes: Any) -> None:
        """See `NativeEagle3`. weights: of a folder that was read as P-EAGLE's. Raises IncompatibleDrafter for
        a drafter that was not trained for such a target."""
        assert weights.config.mask_token is not None
        super().__init__(weights, embedding, layers, **sizes)
        self.depths = weights.config.draft_tokens
        self.mask_token = weights.config.mask_token
        self.mask_feature = np.ascontiguousarray(self.fuse(mask_states(weights))[0])
