"""What drafters that were trained for the target have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.core import Step
from paceline.drafters._model import ModelDrafter, Scorer
from paceline.drafters._options import Growth
from paceline.drafting import Subset
from paceline.errors import ConfigError

LoadTrained = Callable[[str, str], Any]
"""From the name of a drafter and a folder to the model that the folder holds, ready to run for the target.
Raises ModelFileError and IncompatibleDrafter."""


class TrainedScorer(Scorer, Protocol):
    """A scorer that must be shown every step.

    taps       what it wants to see of the target
    whole      whether of all of a text, see `paceline.core.Drafter`
    token_ids  int64 [D]: the target's id of each token that it can propose
    """

    taps: Sequence[str]
    whole: bool
    token_ids: NDArray[np.int64]

    def observe(self, step: Step) -> None:
        """Take in what the target's hidden states were where tokens were kept."""
        ...


class TrainedDrafter(ModelDrafter):
    """Draws trees from a model that reads the target's hidden states."""

    def __init__(self, scorer: TrainedScorer, growth: Growth, vocab_size: int) -> None:
        super().__init__(scorer, growth, subset=Subset(scorer.token_ids, vocab_size))
        self.needs, self.whole = frozenset(scorer.taps), scorer.whole
        self._trained = scorer

    def observe(self, step: Step) -> None:
        """See `TrainedScorer.observe`."""
        super().observe(step)
        self._trained.observe(step)


def load_folder(drafter: str, model: str, load_trained: LoadTrained) -> Any:
    """The model in the folder that the option `model` names. Raises ConfigError if it names none, and what
    `load_trained` raises."""
    if not model:
        raise ConfigError(
            f"{drafter}:model must name a trained drafter's folder, as in {drafter}:model=FOLDER"
        )
    return load_trained(drafter, model)
