"""The drafter dspark on a target that its drafter knows in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paceline.core import Budget, Tree, View
from paceline.drafters import load
from paceline.drafters.dspark import DSpark
from paceline.errors import ConfigError
from paceline.models.dspark_folder import DSparkWeights
from paceline.trained.dflash_reference import inject
from paceline.trained.dspark import NativeDSpark
from paceline.trained.dspark_reference import follow
from tests.dflash import DEPTHS
from tests.dspark import doubtful, following_drafter, random_for, run
from tests.toys import VOCABULARY, SketchingTable
from tests.trained import answers, same, tokens_per_pass
from tests.unit import test_dflash
from tests.unit.test_dflash import MASK, SUCCESSORS, view

BENDS = np.random.default_rng(4).normal(0, 1.5, (VOCABULARY, VOCABULARY)).astype(np.float32)
"""What a token adds to the logits of the next one."""


def following(width: float = 3.0) -> SketchingTable:
    """The target of `tests.unit.test_dflash`, its laws bent by the last token, too."""
    target = test_dflash.following(width)
    target.table += BENDS
    target.table[..., MASK] = -30
    return target


def knowing() -> DSparkWeights:
    return following_drafter(SUCCESSORS, BENDS)[0]


def on_kernels(weights: DSparkWeights | None = None) -> NativeDSpark:
    return run(weights or knowing(), following_drafter(SUCCESSORS, BENDS)[1], layers=4)


def drafter(options: str = "widths=1x1x1x1,min_probability=0", model: NativeDSpark | None = None) -> DSpark:
    made = load(
        f"dspark:model=here,{options}", SketchingTable().info, load_trained=lambda *_: model or on_kernels()
    )
    assert isinstance(made, DSpark)
    return made


def paths(tree: Tree) -> dict[tuple[int, ...], float]:
    """Each node's path, and its confidence."""
    found: dict[tuple[int, ...], float] = {}
    for token, parent, confidence in zip(tree.tokens, tree.parents, tree.confidences, strict=True):
        found[(*(() if parent < 0 else list(found)[parent]), token)] = confidence
    return found


@pytest.mark.parametrize("params", [{}, {"repetition_penalty": 1.5, "logit_bias": {3: 2.0, 7: -1.0}}])
def test_at_temperature_0_the_likeliest_paths_are_proposed(params: dict[str, Any]) -> None:
    """All paths of a random block, by brute force and the slow reference: a law behind each path."""
    weights, embedding = random_for(VOCABULARY)
    model = run(weights, embedding, layers=4)
    dspark = drafter("candidates=12,min_probability=0.001,min_confidence=0", model)
    text = np.random.default_rng(3).integers(VOCABULARY, size=20).tolist()
    test_dflash.shown(dspark, [text])
    seen = view([text], **params)
    tree = dspark.propose(seen, [Budget(14, 3)])[0]
    found: dict[tuple[int, ...], float] = {}
    for path, confidence in paths(tree).items():
        found[path] = found.get(path[:-1], 1.0) * confidence
    logits, _ = model.draft([0], [text[-1]])
    wanted: dict[tuple[int, ...], float] = {}
    level: dict[tuple[int, ...], float] = {(): 1.0}
    for depth in range(3):
        below = {}
        for path, reached in level.items():
            own = logits[0, depth] + model.bias([(text[-1], *path)[-1]])[0]
            bent = seen.controls[0].attempt(own, len(path), path) if params else own
            law = np.exp(bent - bent.max())
            below |= {(*path, token): reached * law[token] / law.sum() for token in range(VOCABULARY)}
        wanted |= below
        level = below
    best = sorted(wanted, key=wanted.__getitem__, reverse=True)[:14]
    assert set(found) == set(best)
    for path in best:
        assert found[path] == pytest.approx(wanted[path], rel=1e-4)


def test_the_token_above_makes_drafts_better() -> None:
    """Than the same drafter's whose Markov head is silent."""
    target, silent = following(), following_drafter(SUCCESSORS, 0 * BENDS)[0]
    for temperature, options in ((0.0, "candidates=1"), (1.0, "widths=1x1x1x1")):
        plain = answers(target, None, temperature, tokens=MASK)
        rates = []
        for weights in (knowing(), silent):
            made = drafter(f"{options},min_probability=0", on_kernels(weights))
            done = answers(target, made, temperature, tokens=MASK)
            assert same(done, plain)
            rates.append(tokens_per_pass(done))
        assert rates[0] > rates[1] + 0.3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_drafted_behind_what_it_doubts(temperature: float) -> None:
    """The doubted token itself is drafted: it is the one behind it that is not expected to be right."""
    doubted, target = 3, following()
    model = on_kernels(doubtful(knowing(), doubted))
    dspark, texts = (
        drafter("widths=2x2x1,candidates=2,min_probability=0", model),
        [[3, 1, 4, 1, 5], [2, 7, 3]],
    )
    test_dflash.shown(dspark, texts)
    trees = dspark.propose(view(texts, temperature=temperature), [Budget(20, 4)] * 2)
    assert not trees[1].tokens, "the last token itself is doubted"
    reached = paths(trees[0])
    assert any(path[-1] == doubted for path in reached)
    assert max(map(len, reached)) > 1
    assert not any(doubted in path[:-1] for path in reached)
    for rule_options in ({}, {"nodes": 18}):
        done = answers(target, dspark, temperature, prompts=6, tokens=MASK, **rule_options)
        assert same(done, answers(target, None, temperature, prompts=6, tokens=MASK))


def test_confidences_are_those_of_the_slow_reference_and_look_at_no_token_below() -> None:
    weights, embedding = random_for(VOCABULARY)
    model = run(weights, embedding, layers=4)
    dspark, text = drafter(model=model), [3, 1, 4, 1, 5]
    test_dflash.shown(dspark, [text])
    dspark._markov.draft([0], [text])
    table = np.array([model._embedding.row(token) for token in range(VOCABULARY)])
    block = table[[text[-1], *[weights.config.mask_token] * (weights.config.block - 1)]]
    injected = inject(weights, [SketchingTable()._states[text[:-1]]] * 3)
    _, certain = follow(weights, weights.tensors["lm_head.weight"], block, injected, [text[-1], 2, 7])
    for length in range(3):
        found = dspark._markov.confidence(0, text, (2, 7)[:length])
        assert found == pytest.approx(certain[: length + 1].prod(), rel=0.05)


class Watched(DSpark):
    """Compares what it would propose with the slow reference, whenever it is asked."""

    compared = 0

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        trees = super().propose(view, budgets)
        weights, states = knowing(), SketchingTable()._states
        table = np.array([on_kernels()._embedding.row(token) for token in range(VOCABULARY)])
        for row, history in enumerate(view.histories):
            if len(trees[row].tokens) > 1 and len(history) % 4 == 0:
                block = table[[history[-1], *[MASK] * (DEPTHS - 1)]]
                text = inject(weights, [states[history[:-1]]] * 3)
                chain = [history[-1], *trees[row].tokens[:1]]
                wanted, _ = follow(weights, weights.tensors["lm_head.weight"], block, text, chain)
                found = self._markov.score(view.slots, view.histories, [(row, (chain[1],))])[0]
                assert np.abs(found - wanted[1]).max() < 0.15
                self.compared += 1
        return trees


def test_what_it_says_is_what_the_slow_reference_says_of_the_whole_text() -> None:
    made = drafter()
    watched = Watched(on_kernels(), made._growth, VOCABULARY, 2, 0.1)
    answers(following(), watched, 0.7, prompts=3, nodes=18, chunk_tokens=16, tokens=MASK)
    assert watched.compared > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("candidates=0", "dspark:candidates must be from 1 to 64, got 0"),
        ("min_confidence=1", "dspark:min_confidence must be at least 0, below 1, got 1"),
    ],
)
def test_bad_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        drafter(options)
