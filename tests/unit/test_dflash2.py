"""The drafter dflash2: what its candidates and its selector make of the laws of a block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paceline.core import Budget
from paceline.drafters import load
from paceline.drafters.dflash import DFlash
from paceline.trained.dflash2 import NativeDFlash2
from tests.dflash2 import following_drafter, random_for, run
from tests.toys import VOCABULARY, SketchingTable
from tests.unit.test_dflash import SUCCESSORS, shown, view

TEXT = np.random.default_rng(3).integers(VOCABULARY, size=20).tolist()


def drafter(options: str) -> DFlash:
    weights, embedding = random_for(VOCABULARY)
    made = load(
        f"dflash2:model=here,{options}",
        SketchingTable().info,
        load_trained=lambda *_: run(weights, embedding, layers=4),
    )
    assert isinstance(made, DFlash)
    shown(made, [TEXT])
    return made


def following(
    options: str = "widths=1x1x1x1,min_probability=0", model: NativeDFlash2 | None = None
) -> DFlash:
    """One that knows where `tests.unit.test_dflash.following` goes on."""
    weights, embedding, head = following_drafter(SUCCESSORS)
    made = load(
        f"dflash2:model=here,{options}",
        SketchingTable().info,
        load_trained=lambda *_: model or run(weights, embedding, head, layers=4),
    )
    assert isinstance(made, DFlash)
    return made


def laws(dflash2: DFlash, depth: int, params: dict[str, Any]) -> dict[tuple[int, ...], np.ndarray]:
    """The law behind each path of candidates, by brute force."""
    model: Any = dflash2._blocks._model
    controls = view([TEXT], **params).controls[0]
    ids, logits, gates = (part[0] for part in model.draft([0], [TEXT[-1]]))
    found: dict[tuple[int, ...], np.ndarray] = {}
    level: list[tuple[int, ...]] = [()]
    for place in range(depth):
        for path in level:
            scores = np.full(VOCABULARY, -np.inf, np.float32)
            above = path[-1] if path else TEXT[-1]
            scores[ids[place]] = logits[place] + model.edges(above, gates[place], ids[place])
            bent = controls.attempt(scores, len(path), path) if controls.adjusts else scores
            law = np.exp(bent - bent.max())
            found[path] = law / law.sum()
        level = [(*path, int(token)) for path in level for token in ids[place]]
    return found


@pytest.mark.parametrize("params", [{}, {"repetition_penalty": 1.5, "logit_bias": {3: 2.0, 7: -1.0}}])
def test_at_temperature_0_the_likeliest_paths_are_proposed(params: dict[str, Any]) -> None:
    """The law of a node depends on the token above it."""
    dflash2 = drafter("candidates=12,min_probability=0")
    tree = dflash2.propose(view([TEXT], **params), [Budget(14, 3)])[0]
    found: dict[tuple[int, ...], float] = {}
    for token, parent, confidence in zip(tree.tokens, tree.parents, tree.confidences, strict=True):
        above = () if parent < 0 else list(found)[parent]
        found[*above, token] = found.get(above, 1.0) * confidence
    known, reached = laws(dflash2, 3, params), {(): 1.0}
    for path, law in known.items():
        if path in reached:
            reached |= {(*path, int(token)): reached[path] * law[token] for token in np.flatnonzero(law)}
    del reached[()]
    best = sorted(reached, key=reached.__getitem__, reverse=True)[:14]
    assert set(found) == set(best)
    for path in best:
        assert found[path] == pytest.approx(reached[path], rel=1e-4)
    first, second, *_ = (law for path, law in known.items() if len(path) == 1)
    kept = first > 0
    assert np.abs(np.log(first[kept] / second[kept])).max() > 0.5


def test_what_a_rule_is_shown_is_the_law_over_the_candidates() -> None:
    """A token is drawn from that law, and the tokens that are no candidates have probability 0 there."""
    dflash2 = drafter("widths=1x1x1,min_probability=0")
    warm = view([TEXT], temperature=0.8)
    tree = dflash2.propose(warm, [Budget(3, 3)])[0]
    known = laws(dflash2, 3, {})
    path: tuple[int, ...] = ()
    for node, token in enumerate(tree.tokens):
        law = tree.origins[node].law
        sharpened = known[path] ** (1 / 0.8)
        ids = np.flatnonzero(known[path])
        assert np.count_nonzero(law) == len(ids) == 6
        np.testing.assert_allclose(law, sharpened / sharpened.sum(), atol=1e-5)
        assert law[token] > 0
        path = (*path, token)
