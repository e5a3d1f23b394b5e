"""The drafter eagle3 on a table whose law its drafter knows in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from paceline.core import Budget, Origin, Tree, View
from paceline.drafters import load
from paceline.drafters._features import CHUNK, FeatureScorer
from paceline.drafters._options import Growth
from paceline.drafters._trained import TrainedDrafter
from paceline.engine import Engine
from paceline.models.eagle3_folder import Eagle3Weights
from paceline.rules import load as load_rule
from paceline.sampling import SamplingParams
from paceline.trained.eagle3 import NativeEagle3
from paceline.trained.eagle3_reference import follow, fuse
from tests.eagle3 import additive_drafter, run
from tests.toys import VOCABULARY, SketchingTable, state_width
from tests.trained import answers, embedding_of, same, tokens_per_pass


def additive(seed: int = 0) -> tuple[SketchingTable, Eagle3Weights]:
    """A table whose logits are a sum over the last two tokens, and the drafter that knows it."""
    before, last = np.random.default_rng(seed).normal(0, 1, (2, VOCABULARY, VOCABULARY)) * [[[3]], [[1]]]
    target = SketchingTable()
    target.table = before[:, None] + last
    return target, additive_drafter(before, last)


def on_kernels(weights: Eagle3Weights, **sizes: int) -> NativeEagle3:
    nothing = embedding_of(np.zeros((VOCABULARY, state_width(VOCABULARY)), np.float32))
    return run(weights, nothing, 4, **sizes)


def drafter(
    weights: Eagle3Weights, options: str = "widths=1x1x1x1,min_probability=0", **sizes: int
) -> TrainedDrafter:
    made = load(
        f"eagle3:model=here,{options}",
        SketchingTable().info,
        load_trained=lambda *_: on_kernels(weights, **sizes),
    )
    assert isinstance(made, TrainedDrafter)
    return made


@pytest.mark.parametrize(("temperature", "least"), [(0.0, 3.5), (1.0, 2.5)])
def test_the_likeliest_of_a_few_nodes_of_each_level_are_accepted_too(
    temperature: float, least: float
) -> None:
    target, weights = additive()
    tree = drafter(weights, "widths=3x3x3x3,frontier=2,min_probability=0")
    done = answers(target, tree, temperature, max_batch=3, nodes=24)
    assert same(done, answers(target, None, temperature))
    assert tokens_per_pass(done) > least


def test_only_tokens_of_the_reduced_vocabulary_are_proposed() -> None:
    target, weights = additive()
    known = [7, 2, 9, 4, 0]
    head = weights.tensors["lm_head.weight"][known]
    config = replace(weights.config, draft_vocab_size=5)
    reduced = Eagle3Weights(config, {**weights.tensors, "lm_head.weight": head}, np.array(known))
    seen: set[int] = set()
    compared: list[Origin] = []

    class Seen(TrainedDrafter):
        def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
            trees = super().propose(view, budgets)
            for tree in trees:
                seen.update(tree.tokens)
                for origin in tree.origins.values():
                    assert origin.law.sum() == pytest.approx(1)
                    if view.coupled:
                        assert origin.law.shape == (len(known),)
                    else:
                        assert origin.law.shape == (VOCABULARY,)
                        assert set(np.flatnonzero(origin.law)) <= set(known)
                        compared.append(origin)
            return trees

    eagle3 = Seen(FeatureScorer(on_kernels(reduced)), Growth([1, 1, 1]), VOCABULARY)
    done = answers(target, eagle3, 1.0, prompts=6)
    assert same(done, answers(target, None, 1.0, prompts=6))
    assert seen == set(known)
    assert tokens_per_pass(done) > 1.5
    answers(target, eagle3, 1.0, prompts=2, rule=load_rule("rejection"))
    assert compared


class Watched(TrainedDrafter):
    """Compares what it would propose with the slow reference, whenever it is asked."""

    def __init__(self, weights: Eagle3Weights, target: SketchingTable) -> None:
        super().__init__(FeatureScorer(on_kernels(weights)), Growth([2, 2]), VOCABULARY)
        self.weights, self.states, self.compared = weights, target._states, 0

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        trees = super().propose(view, budgets)
        embedding = self.weights.tensors["embed_tokens.weight"]
        for row, history in enumerate(view.histories):
            if not trees[row].tokens or len(history) % 4:
                continue
            features = fuse(self.weights, [self.states[history[:-1]]] * 3)
            for path in [(), trees[row].tokens[:1]]:
                wanted = follow(self.weights, embedding, history, features, path)
                found = self._scorer.score(view.slots, view.histories, [(row, tuple(path))])[0]
                assert np.abs(found - wanted).max() < 0.05 * wanted.std()
                self.compared += 1
        return trees


def test_what_it_says_is_what_the_slow_reference_says_of_the_whole_text() -> None:
    target, weights = additive()
    watched = Watched(weights, target)
    answers(target, watched, 0.7, prompts=3, nodes=18, chunk_tokens=16)
    assert watched.compared > 20


def test_long_prompts_are_read_while_they_come() -> None:
    target, weights = additive()
    eagle3 = drafter(weights)
    engine = Engine(target, {"eagle3": eagle3}, drafter="eagle3", chunk_tokens=100)
    text = np.random.default_rng(2).integers(VOCABULARY, size=450).tolist()
    waiting = []
    for event in engine.stream(text, SamplingParams(temperature=0, max_tokens=40)):
        waiting += [one.unread for one in eagle3._trained._readings.values()]
        finish = event.finish
    assert finish is not None
    assert tokens_per_pass([finish]) > 4.2
    assert 100 < max(waiting) <= CHUNK


def test_a_drafter_without_room_lets_others_go_on() -> None:
    """A cache for the slots of one text: the others are decoded plainly."""
    target, weights = additive()
    done = answers(target, drafter(weights, cache_tokens=112), 0.0, max_batch=7, nodes=28)
    assert same(done, answers(target, None, 0.0))
    assert 1.1 < tokens_per_pass(done) < 4
