"""Passes that look ahead: what they show of pads, and that nothing else changes by it."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from paceline import kernels
from paceline.core import LAST, NOTHING, Tree, Verdict
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.targets.native import NativeTarget
from paceline.trained.pads_reference import forward
from tests.native.models import CONFIG, Row, draft_of, random_tree, random_weights, read, step
from tests.pads import CONFIG as PADS
from tests.pads import random_pads, run

V = CONFIG.vocab_size
NONE: frozenset[str] = frozenset()


def make(monkeypatch: pytest.MonkeyPatch, isa: str, **options: int) -> NativeTarget:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    return NativeTarget(random_weights(), threads=2, **options)


def tokens(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(V) for _ in range(count)]


def rows(target: NativeTarget) -> list[Row]:
    """Two sequences with drafts, and one whose prompt is being read."""
    a, b, c = tokens(1, 50), tokens(2, 19), tokens(3, 40)
    read(target, 4, a[:49])
    read(target, 7, b[:18])
    read(target, 8, c[:10])
    tree = random_tree(random.Random(7), 5, V)
    return [(4, a, 49, 50, tree), (8, c, 10, 30, NOTHING), (7, b, 18, 19, Tree.chain(tokens(4, 3)))]


def texts(work: list[Row]) -> dict[int, list[int]]:
    """{node of the pass: all tokens up to it}, of nodes that have pads."""
    draft, found = draft_of(work), {}
    for row, (_, history, _, end, _) in enumerate(work):
        if (root := draft.roots[row]) >= 0:
            found[root] = list(history[:end])
            for node in range(root + 1, int(draft.offsets[row + 1])):
                found[node] = [*found[int(draft.parents[node])], int(draft.tokens[node])]
    return found


def test_what_pads_say_equals_the_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, packed = random_pads(), random_weights()
    for isa in kernels.available():
        target = make(monkeypatch, isa)
        pads, work = run(weights, target), rows(target)
        found = target.forward(draft_of(work), frozenset({pads.tap})).features[pads.tap]
        assert found.shape == (30, 3, 96)
        errors, others = [], []
        known = texts(work)
        for node, text in known.items():
            wanted = forward(weights, packed, text)
            said = pads.forward(found[[node] * 3], [(0,) * (depth + 1) for depth in range(3)])
            errors.append(np.abs(said - wanted) / wanted.std())
            others.append(np.abs(said - forward(weights, packed, text[:-1])) / wanted.std())
        assert np.max(errors) < 0.4, isa
        assert np.mean(errors) < 0.03, isa
        assert np.mean(others) > 5 * np.mean(errors), "the twin: a token less is another text"
        assert np.isnan(np.delete(found, list(known), axis=0)).all(), "no pads behind a prompt"


@pytest.mark.parametrize("isa", kernels.available())
def test_scores_and_cache_are_as_without_pads(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looking, plain = make(monkeypatch, isa), make(monkeypatch, isa)
    tap = looking.look_ahead(random_pads().embeddings)
    taps = frozenset({"hidden.2", LAST})
    for target in (looking, plain):
        work = rows(target)
    drafts = draft_of(work)
    kept = Verdict([[drafts.roots[0] + 1], [], [drafts.roots[2] + 1, drafts.roots[2] + 2]], [0, -1, 0])
    found, wanted = (target.forward(drafts, taps | ({tap} & target.info.taps)) for target in (looking, plain))
    assert_array_equal(found.logits, wanted.logits)
    for name in taps:
        assert_array_equal(found.features[name], wanted.features[name])
    for target in (looking, plain):
        target.commit(drafts, kept)
    for slot in (4, 7, 8):
        for layer in range(CONFIG.layers):
            for left, right in zip(
                looking.read_cache(slot, layer), plain.read_cache(slot, layer), strict=True
            ):
                assert_array_equal(left, right)
    assert looking.model.free_pages == plain.model.free_pages, "pads leave no page behind"


@pytest.mark.parametrize("isa", kernels.available())
def test_what_a_pad_says_does_not_depend_on_what_else_is_there(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On other rows, or on other pads."""
    target = make(monkeypatch, isa)
    one, other = (
        target.look_ahead(random_pads(replace(PADS, depths=depths), seed).embeddings)
        for seed, depths in ((0, 3), (1, 2))
    )
    work = rows(target)
    both = target.forward(draft_of(work), frozenset({one, other})).features
    alone = target.forward(draft_of(work[:1]), frozenset({one})).features[one]
    assert_array_equal(both[one][:6], alone)
    assert both[other].shape == (30, 2, 96)
    assert_array_equal(target.forward(draft_of(work), frozenset({other})).features[other], both[other])


@pytest.mark.parametrize("isa", kernels.available())
def test_without_room_there_are_no_pads_and_all_else_is_there(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, roomy = make(monkeypatch, isa, cache_tokens=32), make(monkeypatch, isa)
    tap, text = target.look_ahead(random_pads().embeddings), tokens(1, 28)
    for one in (target, roomy):
        read(one, 0, text[:27])
    work: list[Row] = [(0, text, 27, 28, Tree.chain([1, 2]))]
    found = target.forward(draft_of(work), frozenset({tap, LAST}))
    assert np.isnan(found.features[tap]).all()
    assert found.features[tap].shape == (3, 3, 96)
    assert_array_equal(found.logits, roomy.forward(draft_of(work), NONE).logits)
    assert np.isfinite(found.features[LAST]).all()
    target.commit(draft_of(work), Verdict([[1]], [5]))
    assert target.model.length(0) == 29


def test_a_tap_is_given_for_each_set_of_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    target = make(monkeypatch, kernels.available()[0])
    first, again, other = (target.look_ahead(random_pads(seed=seed).embeddings) for seed in (0, 0, 1))
    assert first == again != other
    assert {first, other} <= target.info.taps
    for shape in ((0, 96), (17, 96), (3, 64)):
        with pytest.raises(ConfigError, match=r"looks ahead with 1 to 16 embeddings 96 wide, got \["):
            target.look_ahead(np.zeros(shape, np.float32))


def test_other_tokens_beyond_the_vocabulary_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in kernels.available():
        target = make(monkeypatch, isa)
        with pytest.raises((ValueError, IndexError)):
            step(target, [(0, [1, 2, V], 0, 3, NOTHING)])


def test_pads_for_another_target_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = make(monkeypatch, kernels.available()[0])
    for config, message in (
        (replace(PADS, vocab_size=204), "for a target of 204 tokens, this one has 203"),
        (replace(PADS, hidden=128), "for a target of 128 wide hidden states, this one has 96"),
    ):
        with pytest.raises(IncompatibleDrafter, match=message):
            run(random_pads(config), target)
