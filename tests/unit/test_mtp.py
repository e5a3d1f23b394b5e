"""The drafter mtp on a target that its module knows in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.core import Budget, Tree, View
from paceline.drafters import load
from paceline.drafters._features import FeatureScorer
from paceline.drafters._options import Growth
from paceline.drafters._trained import TrainedDrafter
from paceline.kernels.packing import dequantise
from paceline.models.mtp_folder import MtpWeights
from paceline.trained.mtp import NativeMtp
from paceline.trained.mtp_reference import follow
from tests.mtp import following_drafter, run
from tests.toys import VOCABULARY, SketchingTable
from tests.trained import answers
from tests.unit.test_dflash import MASK, SUCCESSORS, following

MODULE, EMBEDDING, HEAD = following_drafter(SUCCESSORS)


def on_kernels(weights: MtpWeights = MODULE) -> NativeMtp:
    return run(weights, EMBEDDING, HEAD)


def drafter(options: str = "widths=1x1x1x1,min_probability=0") -> TrainedDrafter:
    made = load(f"mtp:model=here,{options}", SketchingTable().info, load_trained=lambda *_: on_kernels())
    assert isinstance(made, TrainedDrafter)
    return made


class Watched(TrainedDrafter):
    """Compares what it would propose with the slow reference, whenever it is asked."""

    def __init__(self, target: SketchingTable) -> None:
        super().__init__(FeatureScorer(on_kernels()), Growth([2, 2]), VOCABULARY)
        self.states, self.compared = target._states, 0

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        trees = super().propose(view, budgets)
        table, head = (dequantise(kind, *shape, packed) for kind, packed, *shape, _ in (EMBEDDING, HEAD))
        for row, history in enumerate(view.histories):
            if not trees[row].tokens or len(history) % 4:
                continue
            for path in [(), trees[row].tokens[:1]]:
                wanted = follow(MODULE, head, table, history, self.states[history[:-1]], path)
                found = self._scorer.score(view.slots, view.histories, [(row, tuple(path))])[0]
                assert np.abs(found - wanted).max() < 0.05 * wanted.std()
                self.compared += 1
        return trees


def test_what_it_says_is_what_the_slow_reference_says_of_the_whole_text() -> None:
    target = following()
    watched = Watched(target)
    answers(target, watched, 0.7, prompts=3, nodes=18, chunk_tokens=16, tokens=MASK)
    assert watched.compared > 20
