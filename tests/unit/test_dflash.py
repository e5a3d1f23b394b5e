"""The drafter dflash on a target that its drafter knows in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paceline.core import Budget, Tree, View
from paceline.drafters import load
from paceline.drafters._blocks import BlockScorer
from paceline.drafters._options import Growth
from paceline.drafters.dflash import DFlash
from paceline.laws import Controls
from paceline.models.dflash_folder import DFlashWeights
from paceline.sampling import SamplingParams
from paceline.trained.dflash import NativeDFlash
from paceline.trained.dflash_reference import forward, inject
from tests.dflash import DEPTHS, following_drafter, random_for, run
from tests.toys import VOCABULARY, SketchingTable
from tests.trained import answers, same, tokens_per_pass

MASK = VOCABULARY - 1
SUCCESSORS = np.array([4, 7, 0, 10, 8, 2, 9, 5, 3, 1, 6])


def following(width: float = 5.0) -> SketchingTable:
    """A target where the token two places behind x is nearly always SUCCESSORS[x], and never the mask
    token."""
    target = SketchingTable()
    target.table = np.random.default_rng(0).normal(0, 0.3, target.table.shape)
    target.table[np.arange(MASK), :, SUCCESSORS] += width
    target.table[..., MASK] = -30
    return target


def on_kernels(**sizes: int) -> NativeDFlash:
    weights, embedding = following_drafter(SUCCESSORS)
    return run(weights, embedding, layers=4, **sizes)


def drafter(options: str = "widths=1x1x1x1,min_probability=0", model: NativeDFlash | None = None) -> DFlash:
    made = load(
        f"dflash:model=here,{options}", SketchingTable().info, load_trained=lambda *_: model or on_kernels()
    )
    assert isinstance(made, DFlash)
    return made


def view(texts: Sequence[list[int]], **params: Any) -> View:
    controls = [Controls(SamplingParams(**({"temperature": 0} | params)), (), text) for text in texts]
    ends = [len(text) for text in texts]
    starts = [end - 1 for end in ends]
    return View(range(len(texts)), texts, starts, ends, controls, [5] * len(texts), ends, ["d"] * len(texts))


def shown(dflash: DFlash, texts: Sequence[list[int]]) -> None:
    """Let a drafter see texts but for their last tokens."""
    model = dflash._blocks._model
    for slot, text in enumerate(texts):
        states = SketchingTable()._states[text[:-1]]
        model.extend([slot], [len(text) - 1], [states] * len(model.taps))
        dflash._blocks._begins[slot] = 0


@pytest.mark.parametrize("params", [{}, {"repetition_penalty": 1.5, "logit_bias": {3: 2.0, 7: -1.0}}])
def test_at_temperature_0_the_likeliest_paths_are_proposed(params: dict[str, Any]) -> None:
    """All paths of a random block, by brute force; controls bend the laws along each path."""
    weights, embedding = random_for(VOCABULARY)
    model = run(weights, embedding, layers=4)
    dflash = drafter("candidates=12,min_probability=0.001", model)
    text = np.random.default_rng(3).integers(VOCABULARY, size=20).tolist()
    shown(dflash, [text])
    seen = view([text], **params)
    tree = dflash.propose(seen, [Budget(14, 3)])[0]
    found: dict[tuple[int, ...], float] = {}
    for token, parent, confidence in zip(tree.tokens, tree.parents, tree.confidences, strict=True):
        above = () if parent < 0 else list(found)[parent]
        found[*above, token] = found.get(above, 1.0) * confidence
    logits = model.forward([0], [text[-1]])[0]
    wanted: dict[tuple[int, ...], float] = {}
    level: dict[tuple[int, ...], float] = {(): 1.0}
    for depth in range(3):
        below = {}
        for path, reached in level.items():
            bent = (
                seen.controls[0].attempt(logits[depth].copy(), len(path), path) if params else logits[depth]
            )
            law = np.exp(bent - bent.max())
            below |= {(*path, token): reached * law[token] / law.sum() for token in range(VOCABULARY)}
        wanted |= below
        level = below
    best = sorted(wanted, key=wanted.__getitem__, reverse=True)[:14]
    assert set(found) == set(best)
    for path in best:
        assert found[path] == pytest.approx(wanted[path], rel=1e-4)
    assert tree.origins == {}


def test_one_candidate_makes_a_chain_and_a_likely_end_ends_it() -> None:
    dflash, text = drafter("candidates=1,min_probability=0"), [3, 1, 4, 1, 5]
    shown(dflash, [text])
    chain = dflash.propose(view([text]), [Budget(9, 9)])[0]
    follow = [SUCCESSORS[1], SUCCESSORS[5]]
    follow += [SUCCESSORS[follow[0]], SUCCESSORS[follow[1]]]
    assert (list(chain.tokens), list(chain.parents)) == (follow, [-1, 0, 1, 2])
    ended = dflash.propose(view([text], stop_token_ids=[int(follow[1])]), [Budget(9, 9)])[0]
    assert list(ended.tokens) == follow[:2]


@pytest.mark.parametrize("allowed", [0, 1, 3, 9])
def test_no_more_is_proposed_than_controls_allow(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a grammar leaves nothing that the drafter can say, nothing is proposed."""
    weights = np.zeros(VOCABULARY)
    weights[2 : 2 + allowed] = np.arange(1, 1 + allowed)
    monkeypatch.setattr("paceline.drafters.dflash.warped", lambda *_: weights)
    made = drafter("candidates=4,widths=1,min_probability=0")
    shown(made, [[1, 2, 3]])
    (tree,) = made.propose(view([[1, 2, 3]]), [Budget(9, 1)])
    assert list(tree.tokens) == list(range(2, 2 + allowed))[::-1][:4]


def test_trees_find_more_than_chains() -> None:
    """Where the target is less sure than its drafter, its second choice is often right."""
    target = following(2.0)
    chain = answers(target, drafter("candidates=1,min_probability=0"), 0.0, nodes=16, tokens=MASK)
    tree = answers(target, drafter("candidates=4,min_probability=0"), 0.0, nodes=16, tokens=MASK)
    assert same(tree, chain)
    assert tokens_per_pass(tree) >= tokens_per_pass(chain)


def test_rows_at_different_temperatures_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    dflash, texts = drafter("widths=1x1,min_probability=0"), [[3, 1, 4, 1, 5], [2, 7, 1, 8]]
    shown(dflash, texts)
    model, passes = dflash._blocks._model, []
    pass_over = model.forward

    def counted(slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        passes.append(slots)
        return pass_over(slots, tokens)

    monkeypatch.setattr(model, "forward", counted)
    cold, warm = view(texts), view(texts, temperature=1.0)
    mixed = replace(cold, controls=[cold.controls[0], warm.controls[1]])
    trees = dflash.propose(mixed, [Budget(4, 4)] * 2)
    assert passes == [[0, 1]]
    assert not trees[0].origins
    assert [one.law.sum() for one in trees[1].origins.values()] == pytest.approx([1, 1])
    dflash.propose(mixed, [Budget(4, 4)] * 2)
    assert passes == [[0, 1]], "nothing new was committed"


class Watched(DFlash):
    """Compares what it would propose with the slow reference, whenever it is asked."""

    def __init__(self, target: SketchingTable) -> None:
        super().__init__(BlockScorer(on_kernels()), Growth([1] * DEPTHS), VOCABULARY, 2)
        self.weights: DFlashWeights = following_drafter(SUCCESSORS)[0]
        self.table = np.array([on_kernels()._embedding.row(token) for token in range(VOCABULARY)])
        self.states, self.compared = target._states, 0

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        trees = super().propose(view, budgets)
        for row, history in enumerate(view.histories):
            if trees[row].tokens and len(history) % 2 == 0:
                block = self.table[[history[-1], *[MASK] * DEPTHS]]
                text = inject(self.weights, [self.states[history[:-1]]] * 3)
                wanted = forward(self.weights, self.weights.tensors["lm_head.weight"], block, text)
                found = self._blocks._drafted[view.slots[row]][1]
                assert np.abs(found - wanted).max() < 0.1
                self.compared += 1
        return trees


def test_what_it_says_is_what_the_slow_reference_says_of_the_whole_text() -> None:
    target = following()
    watched = Watched(target)
    answers(target, watched, 0.7, prompts=3, nodes=18, chunk_tokens=16, tokens=MASK)
    assert watched.compared > 10


def test_a_drafter_without_room_lets_others_go_on() -> None:
    """A cache for the positions of one text: the others are decoded plainly."""
    target = following()
    done = answers(
        target, drafter(model=on_kernels(cache_tokens=112)), 0.0, max_batch=7, nodes=28, tokens=MASK
    )
    assert same(done, answers(target, None, 0.0, tokens=MASK))
    assert 1.1 < tokens_per_pass(done) < 4
