"""An EAGLE-3 drafter with adapters for several tasks, on the CPU kernels.

Adapters are added to the drafter's matrices once, when it is loaded: each task then has a drafter of its own,
about as large as the base, and costs no more than that while drafting. `paceline.trained.eagle3_reference`
says what is computed with `TasksWeights.merged`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from paceline.kernels.packing import Embedding
from paceline.models.drafter_folder import Floats
from paceline.models.eagle3_folder import Eagle3Weights
from paceline.models.tasks_folder import TasksWeights
from paceline.trained.eagle3 import NativeEagle3

READ = 512
"""Tokens of a prompt that the router looks at: its last ones, where long prompts say what to do."""


class NativeTasks:
    """See `paceline.drafters.tasks.TaskModels`."""

    def __init__(
        self,
        weights: TasksWeights,
        embedding: Embedding,
        run: Callable[[Eagle3Weights], NativeEagle3],
    ) -> None:
        """embedding: the target's. run: puts a drafter on the kernels; what it raises goes through."""
        self.models = [run(weights.base), *(run(weights.merged(task)) for task in range(len(weights.tasks)))]
        self._weights, self._embedding = weights, embedding

    def choose(self, prompt: Sequence[int]) -> int:
        """Which of `models` drafts for a prompt: 0, the base, where no task is likely enough."""
        rows = {token: self._embedding.row(token) for token in set(prompt[-READ:])}
        mean: Floats = np.stack([rows[token] for token in prompt[-READ:]]).mean(0)
        shares = probabilities(self._weights.weight, self._weights.bias, mean)
        best = int(shares.argmax())
        return best + 1 if shares[best] >= self._weights.least_probability else 0


def probabilities(weight: Floats, bias: Floats, means: Floats) -> Floats:
    """How likely prompts are of each task, float32 [..., tasks]: softmax(W x + b). means: [..., hidden], of
    their embeddings."""
    scores = means @ weight.T + bias
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    found: Floats = shares / shares.sum(-1, keepdims=True)
    return found
