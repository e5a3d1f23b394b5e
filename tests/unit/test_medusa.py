"""The drafter medusa on a table whose law its heads know in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from paceline.core import Budget, Tree, View
from paceline.drafters import load
from paceline.drafters._options import Growth
from paceline.drafters.medusa import Medusa
from paceline.models.heads_folder import HeadsWeights
from tests.heads import chain_heads, run
from tests.toys import VOCABULARY, SketchingTable
from tests.trained import answers, same, tokens_per_pass

CHAIN = "widths=1x1x1x1,min_probability=0"
TREE = "widths=4x4x3x3,min_probability=0"


def chain(sharpness: float, blur: float = 0) -> tuple[SketchingTable, HeadsWeights]:
    """A table that goes from token to token around one cycle, more or less surely, and heads that know it, or
    something like it."""
    rng = np.random.default_rng(0)
    order = rng.permutation(VOCABULARY)
    logits = rng.normal(0, 0.5, (VOCABULARY, VOCABULARY))
    logits[order, np.roll(order, 1)] += sharpness
    target = SketchingTable()
    target.table = np.repeat(logits[None], VOCABULARY, 0)
    law = np.exp(logits + rng.normal(0, blur, logits.shape))
    return target, chain_heads(law / law.sum(1, keepdims=True))


def drafter(weights: HeadsWeights, options: str = CHAIN) -> Medusa:
    made = load(f"medusa:model=here,{options}", SketchingTable().info, load_trained=lambda *_: run(weights))
    assert isinstance(made, Medusa)
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_tree_of_the_likeliest_paths_brings_more_than_a_chain(temperature: float) -> None:
    target, weights = chain(3, blur=0 if temperature else 2)
    chained, tree = (
        answers(target, drafter(weights, options), temperature, max_batch=3, nodes=36)
        for options in (CHAIN, TREE)
    )
    assert same(chained, tree)
    assert same(tree, answers(target, None, temperature))
    assert tokens_per_pass(tree) > tokens_per_pass(chained) + 0.3


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_controls_that_look_at_the_path_are_heeded_along_it(temperature: float) -> None:
    """Repetition makes tokens of the cycle unlikely, so that heads alone would be wrong."""
    target, weights = chain(3)
    more = {"presence_penalty": 2.0, "frequency_penalty": 0.4}
    done = answers(target, drafter(weights, TREE), temperature, params=more, nodes=64)
    assert same(done, answers(target, None, temperature, params=more))
    assert tokens_per_pass(done) > 1.3


def test_only_tokens_of_the_reduced_vocabulary_are_proposed() -> None:
    target, weights = chain(2)
    known = np.array([0, 2, 4, 7, 9])
    config = replace(weights.config, draft_vocab_size=5)
    heads = {
        name: tensor[known] if name.startswith("lm_heads") else tensor
        for name, tensor in weights.tensors.items()
    }
    seen: set[int] = set()

    class Seen(Medusa):
        def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
            trees = super().propose(view, budgets)
            for tree in trees:
                seen.update(tree.tokens)
            return trees

    medusa = Seen(run(HeadsWeights(config, heads, known)), Growth([3, 2, 2]), VOCABULARY)
    done = answers(target, medusa, 1.0, nodes=64)
    assert same(done, answers(target, None, 1.0))
    assert seen == set(known.tolist())
    assert tokens_per_pass(done) > 1.2


def test_what_is_likely_is_learned_while_drafting() -> None:
    """Heads that are sure and always wrong are soon asked for nothing."""
    target, weights = chain(8)
    wrong = {name: np.roll(tensor, 1, axis=0) for name, tensor in weights.tensors.items()}
    medusa = drafter(replace(weights, tensors=wrong), "widths=1x1,min_probability=0.2")
    first = answers(target, medusa, 0.0, prompts=6)
    assert sum(one.stats.drafted for one in first) > 0
    again = answers(target, medusa, 0.0, prompts=6)
    assert sum(one.stats.drafted for one in again) == 0
    assert same(first, again)


def test_fewer_heads_than_levels_make_shorter_drafts() -> None:
    target, weights = chain(8)
    config = replace(weights.config, depths=2)
    tensors = {name: weights.tensors[name] for name in config.shapes}
    done = answers(target, drafter(replace(weights, config=config, tensors=tensors)), 0.0)
    assert 2.7 < tokens_per_pass(done) <= 3
