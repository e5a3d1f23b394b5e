"""The drafter hydra on a table whose law its heads know in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from paceline.core import Budget, Tree, View
from paceline.drafters import load
from paceline.drafters._heads import HeadScorer
from paceline.drafters._options import Growth
from paceline.drafters._trained import TrainedDrafter
from paceline.errors import ModelFileError
from paceline.models.heads_folder import HeadsWeights, read_heads
from paceline.rules import load as load_rule
from tests.heads import chain_heads, embeddings, folder_of, reading_heads, run
from tests.toys import VOCABULARY, SketchingTable
from tests.trained import answers, embedding_of, same, tokens_per_pass
from tests.unit.test_medusa import drafter as medusa

CHAIN = "widths=1x1x1x1,min_probability=0"


def chain(spread: float, seed: int = 0) -> tuple[SketchingTable, HeadsWeights, HeadsWeights]:
    """A table whose law hangs on the last token alone, Hydra's heads that know it, and Medusa's that know
    what follows on average."""
    logits = np.random.default_rng(seed).normal(0, spread, (VOCABULARY, VOCABULARY))
    target = SketchingTable()
    target.table = np.repeat(logits[None], VOCABULARY, 0)
    law = np.exp(logits)
    law /= law.sum(1, keepdims=True)
    return target, reading_heads(law), chain_heads(law)


def drafter(weights: HeadsWeights, options: str = CHAIN) -> TrainedDrafter:
    made = load(f"hydra:model=here,{options}", SketchingTable().info, load_trained=lambda *_: run(weights))
    assert isinstance(made, TrainedDrafter)
    return made


def test_heads_that_read_no_tokens_know_less_of_the_same_law() -> None:
    """The twin: without the tokens above it no head can be as good at a temperature."""
    target, reading, blind = chain(2)
    done = answers(target, drafter(reading), 1.0, max_batch=1)
    other = answers(target, medusa(blind), 1.0, max_batch=1)
    assert tokens_per_pass(done) > 2 * tokens_per_pass(other)


def test_heads_that_read_other_embeddings_are_hardly_ever_right() -> None:
    """The twin: the embedding of each token is that of its neighbour."""
    target, weights, _ = chain(2)
    from paceline.trained.heads import NativeHeads

    shifted = np.roll(embeddings(weights.config), 1, axis=0)
    heads = NativeHeads(weights, embedding_of(shifted))
    hydra = TrainedDrafter(HeadScorer(heads), Growth([1] * 4), VOCABULARY)
    done = answers(target, hydra, 1.0, max_batch=1)
    assert same(done, answers(target, None, 1.0))
    assert tokens_per_pass(done) < 1.5


def test_the_likeliest_of_a_few_nodes_of_each_level_are_accepted_too() -> None:
    target, weights, _ = chain(1)
    tree = drafter(weights, "widths=3x3x3x3,frontier=2,min_probability=0")
    done = answers(target, tree, 1.0, max_batch=3, nodes=24)
    assert same(done, answers(target, None, 1.0))
    assert tokens_per_pass(done) > 2.5


def test_every_law_is_that_behind_its_own_path() -> None:
    target, weights, _ = chain(1)
    law = np.exp(target.table[0])
    law /= law.sum(1, keepdims=True)
    compared = 0

    class Seen(TrainedDrafter):
        def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
            nonlocal compared
            trees = super().propose(view, budgets)
            for row, tree in enumerate(trees):
                for node, parent in enumerate(tree.parents):
                    above = tree.tokens[parent] if parent >= 0 else view.histories[row][-1]
                    assert np.abs(tree.origins[node].law - law[above]).max() < 0.02
                    compared += 1
            return trees

    hydra = Seen(HeadScorer(run(weights)), Growth([2, 2, 1]), VOCABULARY)
    answers(target, hydra, 1.0, prompts=4, rule=load_rule("traversal"), nodes=40)
    assert compared > 100


def test_medusas_folder_is_refused(tmp_path: Path) -> None:
    folder = folder_of(chain(2)[2], tmp_path / "others")
    with pytest.raises(ModelFileError, match=r'model_type is "medusa", expected "hydra"'):
        read_heads(folder, "hydra")
