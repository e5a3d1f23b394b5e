"""Sketches: cheaper passes to draft with. What they leave out, and that they leave no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from paceline import kernels
from paceline.core import Shortcut, Tree
from paceline.targets.native import NativeTarget
from tests.native.models import CONFIG, Row, draft_of, random_tree, random_weights, read, step

V = CONFIG.vocab_size
NONE: frozenset[str] = frozenset()
SHORTCUTS = {
    "nothing": Shortcut(),
    "a layer": Shortcut(frozenset({1})),
    "the last layers": Shortcut(frozenset({1, 2})),
    "the middle of the cache": Shortcut(sinks=5, recent=20),
    "both": Shortcut(frozenset({0}), sinks=16, recent=1),
}


def make(monkeypatch: pytest.MonkeyPatch, isa: str) -> NativeTarget:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    target = NativeTarget(random_weights(), threads=2)
    assert target.model.isa == isa
    return target


def tokens(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(V) for _ in range(count)]


def rows(target: Any) -> list[Row]:
    """Two sequences in the cache, one of them long, and a draft for both."""
    a, b = tokens(1, 90), tokens(2, 19)
    read(target, 4, a[:89])
    read(target, 7, b[:18])
    rng = random.Random(7)
    return [(4, a, 89, 90, random_tree(rng, 5, V)), (7, b, 18, 19, Tree.chain(tokens(4, 3)))]


@pytest.mark.parametrize("what", SHORTCUTS)
def test_its_logits_equal_the_references(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for isa in kernels.available():
        target = make(monkeypatch, isa)
        found[isa] = target.sketch(draft_of(rows(target)), SHORTCUTS[what]).copy()
    wanted = found.pop("reference")
    for isa, logits in found.items():
        error = np.abs(logits - wanted) / wanted.std()
        assert error.max() < 0.15, (isa, error.max())
        assert error.mean() < 0.015, (isa, error.mean())


@pytest.mark.parametrize("what", SHORTCUTS)
def test_only_one_that_leaves_nothing_out_equals_the_pass_itself(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isa in kernels.available():
        target = make(monkeypatch, isa)
        draft = draft_of(rows(target))
        whole = target.forward(draft, NONE).logits.copy()
        same = np.array_equal(whole, target.sketch(draft, SHORTCUTS[what]))
        assert same == (what == "nothing"), isa


def test_what_is_not_seen_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens between the sinks and the recent ones may be any, with one layer left, which mixes positions
    only once."""
    left_out = Shortcut(frozenset({1, 2}), sinks=16, recent=32)
    for isa in kernels.available():
        target = make(monkeypatch, isa)
        text = tokens(1, 97)
        other = [*text[:16], *tokens(9, 48), *text[64:]]
        found = []
        for slot, history in enumerate((text, other)):
            read(target, slot, history[:96])
            found.append(target.sketch(draft_of([(slot, history, 96, 97, Tree([], []))]), left_out).copy())
        assert_array_equal(*found)


@pytest.mark.parametrize("what", SHORTCUTS)
def test_it_leaves_the_cache_and_later_passes_as_they_were(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isa in kernels.available():
        sketched, untouched = make(monkeypatch, isa), make(monkeypatch, isa)
        for target in (sketched, untouched):
            work = rows(target)
            if target is sketched:
                free = target.model.free_pages
                for _ in range(3):
                    target.sketch(draft_of(work), SHORTCUTS[what])
                assert free - target.model.free_pages <= 2, "room for the draft, once"
        for slot in (4, 7):
            for layer in range(CONFIG.layers):
                for left, right in zip(
                    sketched.read_cache(slot, layer), untouched.read_cache(slot, layer), strict=True
                ):
                    assert_array_equal(left, right)
        assert_array_equal(step(sketched, work, [[0], [0, 1]]), step(untouched, work, [[0], [0, 1]]))
        after: list[Row] = [(4, tokens(1, 95), 91, 95, Tree([3], [-1]))]
        sketched.sketch(draft_of(after), SHORTCUTS[what])
        assert_array_equal(step(sketched, after), step(untouched, after))


def test_its_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in kernels.available():
        target = make(monkeypatch, isa)
        work = rows(target)
        together = target.sketch(draft_of(work), SHORTCUTS["both"]).copy()
        alone = [target.sketch(draft_of([row]), SHORTCUTS["both"]).copy() for row in work]
        assert_array_equal(together, np.concatenate(alone))


def test_it_cannot_be_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in kernels.available():
        target = make(monkeypatch, isa)
        target.sketch(draft_of(rows(target)), Shortcut())
        with pytest.raises(ValueError, match="commit"):
            target.model.commit([1, 1], [[], []])
