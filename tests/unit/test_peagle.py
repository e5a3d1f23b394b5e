"""The drafter peagle on a target that its drafter knows in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from paceline.core import Budget, Draft, Tree, View
from paceline.drafters import load
from paceline.drafters._features import ParallelScorer
from paceline.drafters._options import Growth
from paceline.drafters._trained import TrainedDrafter
from paceline.models.drafter_folder import Floats
from paceline.models.eagle3_folder import Eagle3Weights
from paceline.trained.eagle3_reference import fuse
from paceline.trained.peagle import NativePEagle
from paceline.trained.peagle_reference import draft
from tests.peagle import DEPTHS, following_drafter, run
from tests.toys import VOCABULARY, SketchingTable, state_width
from tests.trained import answers, embedding_of, same, tokens_per_pass
from tests.unit.test_dflash import MASK, SUCCESSORS, following


def on_kernels(weights: Eagle3Weights) -> NativePEagle:
    nothing = embedding_of(np.zeros((VOCABULARY, state_width(VOCABULARY)), np.float32))
    return run(weights, nothing, 4)


def drafter(
    options: str = "widths=1x1x1x1,min_probability=0", model: NativePEagle | None = None
) -> TrainedDrafter:
    made = load(
        f"peagle:model=here,{options}",
        SketchingTable().info,
        load_trained=lambda *_: model or on_kernels(following_drafter(SUCCESSORS)),
    )
    assert isinstance(made, TrainedDrafter)
    return made


class Counted(NativePEagle):
    """Counts the passes that score something."""

    passes = 0

    def forward(self, draft: Draft, features: Floats) -> tuple[Floats, Floats]:
        self.passes += bool(len(draft.scored))
        return super().forward(draft, features)


def counted() -> Counted:
    model = on_kernels(following_drafter(SUCCESSORS))
    model.__class__ = Counted
    assert isinstance(model, Counted)
    return model


@pytest.mark.parametrize("options", ["widths=1x1x1x1", "widths=3x3x3x3,frontier=2"])
def test_a_draft_costs_one_pass_however_deep_it_is(options: str) -> None:
    model = counted()
    target = following()
    done = answers(
        target, drafter(f"{options},min_probability=0", model), 0.0, prompts=1, nodes=24, tokens=MASK
    )
    assert same(done, answers(target, None, 0.0, prompts=1, tokens=MASK))
    assert tokens_per_pass(done) > 4
    assert 0 < model.passes <= done[0].stats.passes


class Watched(TrainedDrafter):
    """Compares the laws of each depth with the slow reference, whenever it is asked."""

    def __init__(self, weights: Eagle3Weights, target: SketchingTable) -> None:
        super().__init__(ParallelScorer(on_kernels(weights)), Growth([1] * DEPTHS), VOCABULARY)
        self.weights, self.states, self.compared = weights, target._states, 0

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        trees = super().propose(view, budgets)
        embedding = self.weights.tensors["embed_tokens.weight"]
        for row, history in enumerate(view.histories):
            if not trees[row].tokens or len(history) % 4:
                continue
            wanted = draft(
                self.weights, embedding, history, fuse(self.weights, [self.states[history[:-1]]] * 3)
            )
            for depth in range(DEPTHS):
                path = (0,) * depth
                found = self._scorer.score(view.slots, view.histories, [(row, path)])[0]
                assert np.abs(found - wanted[depth]).max() < 0.05 * wanted.std()
                self.compared += 1
        return trees


def test_what_it_says_is_what_the_slow_reference_says_of_the_whole_text() -> None:
    target = following()
    watched = Watched(following_drafter(SUCCESSORS), target)
    answers(target, watched, 0.7, prompts=3, nodes=18, chunk_tokens=16, tokens=MASK)
    assert watched.compared > 20


def test_no_tree_is_deeper_than_a_pass_drafts() -> None:
    deep = drafter("widths=1x1x1x1x1x1x1x1,min_probability=0")
    done = answers(following(), deep, 0.0, prompts=2, nodes=32, tokens=MASK)
    assert max(drafted for one in done for drafted in one.stats.drafts) == DEPTHS
