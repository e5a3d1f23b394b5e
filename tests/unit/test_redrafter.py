"""The drafter redrafter on a table whose law it knows in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from paceline.core import Budget, Tree, View
from paceline.drafters import load
from paceline.drafters._options import Growth
from paceline.drafters._trained import TrainedDrafter
from paceline.drafters.redrafter import RecurrentScorer
from paceline.models.redrafter_folder import RedrafterWeights
from paceline.trained.redrafter import NativeRedrafter
from tests.heads import embeddings
from tests.redrafter import chain_drafter, run
from tests.toys import VOCABULARY, SketchingTable
from tests.trained import answers, embedding_of, same, tokens_per_pass

CHAIN = "widths=1x1x1x1,min_probability=0"


def chain(spread: float, seed: int = 0) -> tuple[SketchingTable, RedrafterWeights]:
    """A table whose law hangs on the last token alone, and the drafter that knows it."""
    logits = np.random.default_rng(seed).normal(0, spread, (VOCABULARY, VOCABULARY))
    target = SketchingTable()
    target.table = np.repeat(logits[None], VOCABULARY, 0)
    law = np.exp(logits)
    law /= law.sum(1, keepdims=True)
    return target, chain_drafter(law)


def drafter(weights: RedrafterWeights, options: str = CHAIN) -> TrainedDrafter:
    made = load(
        f"redrafter:model=here,{options}", SketchingTable().info, load_trained=lambda *_: run(weights)
    )
    assert isinstance(made, TrainedDrafter)
    return made


def test_one_that_reads_other_embeddings_is_hardly_ever_right() -> None:
    """The twin: the embedding of each token is that of its neighbour."""
    target, weights = chain(2)
    shifted = np.roll(embeddings(weights.config), 1, axis=0)
    scorer = RecurrentScorer(NativeRedrafter(weights, embedding_of(shifted)))
    done = answers(target, TrainedDrafter(scorer, Growth([1] * 4), VOCABULARY), 1.0, max_batch=1)
    assert same(done, answers(target, None, 1.0))
    assert tokens_per_pass(done) < 1.5


def test_the_likeliest_of_a_few_nodes_of_each_level_are_accepted_too() -> None:
    target, weights = chain(1)
    tree = drafter(weights, "widths=3x3x3x3,frontier=2,min_probability=0")
    done = answers(target, tree, 1.0, max_batch=3, nodes=24)
    assert same(done, answers(target, None, 1.0))
    assert tokens_per_pass(done) > 2.5


def test_a_state_is_that_behind_its_own_path() -> None:
    """Several rows, paths of several lengths, a text that goes on: against one path after the other."""
    target, weights = chain(1)
    compared = 0

    class Seen(RecurrentScorer):
        def score(self, slots, histories, paths):  # type: ignore[no-untyped-def]
            nonlocal compared
            logits = super().score(slots, histories, paths)
            alone = run(weights)
            for (row, path), found in zip(paths, logits, strict=True):
                state = self._states[slots[row]][1][None]
                for token in (histories[row][-1], *path):
                    wanted, state = alone.forward(state, [token])
                np.testing.assert_array_equal(found, wanted[0])
                compared += 1
            return logits

    seen = TrainedDrafter(Seen(run(weights)), Growth([2, 2, 1]), VOCABULARY)
    done = answers(target, seen, 1.0, max_batch=3, nodes=32)
    assert same(done, answers(target, None, 1.0))
    assert compared > 300


def test_nothing_is_drafted_where_the_last_step_was_missed() -> None:
    target, weights = chain(1)
    missed = 0

    class Missing(TrainedDrafter):
        def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
            nonlocal missed
            trees = super().propose(view, budgets)
            missed += all(not tree.tokens for tree in trees)
            return trees

        def observe(self, step) -> None:  # type: ignore[no-untyped-def]
            if step.view.ends[0] % 2:
                super().observe(step)

    forgetful = Missing(RecurrentScorer(run(weights)), Growth([1]), VOCABULARY)
    done = answers(target, forgetful, 1.0, max_batch=1)
    assert same(done, answers(target, None, 1.0))
    assert 10 < missed < sum(one.stats.passes for one in done)


@pytest.mark.parametrize(("shift", "low", "high"), [(0, 0.85, 1.0), (1, 0.0, 0.4)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trees_confidence_is_what_came_true_and_not_what_was_claimed(
    temperature: float, shift: int, low: float, high: float
) -> None:
    """One that is right although no token is likely, and its twin that is as sure of itself and wrong."""
    target, weights = chain(2)
    shifted = np.roll(embeddings(weights.config), shift, axis=0)
    claimed: list[float] = []

    class Seen(TrainedDrafter):
        def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
            trees = super().propose(view, budgets)
            claimed.extend(tree.confidences[0] for tree in trees if tree.confidences)
            return trees

    scorer = RecurrentScorer(NativeRedrafter(weights, embedding_of(shifted)))
    seen = Seen(scorer, Growth([1, 1], frontier=1), VOCABULARY)
    done = answers(target, seen, temperature, prompts=24, max_batch=1)
    assert same(done, answers(target, None, temperature, prompts=24))
    assert low <= np.mean(claimed[-100:]) <= high
