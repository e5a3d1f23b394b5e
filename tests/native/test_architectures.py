"""Every architecture against the transformers library, on tiny random models.

The expected logits were made once (golden/transformers_logits.py); where torch and transformers are
installed they are also computed anew.
"""

from __future__ import annotations

import hashlib
import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline import kernels
from paceline.core import NOTHING, Tree
from paceline.kernels.reference import Model
from paceline.targets.native import NativeTarget
from paceline.targets.weights import PackedWeights, pack_gguf
from tests.native.golden import families
from tests.native.golden.families import FAMILIES, SCORED, VOCABULARY, Family, Floats, write_family
from tests.native.models import draft_of, path_to, random_tree, read, step

GOLDEN = Path(families.__file__).parent
EXPECTED = np.load(GOLDEN / "expected.npz")
COMPILED = [isa for isa in kernels.available() if isa != "reference"]
ALL = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PackedWeights]:
    return pack_all(tmp_path_factory.mktemp("integers"), "Q8_0")


@pytest.fixture(scope="module")
def packed_floats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PackedWeights]:
    return pack_all(tmp_path_factory.mktemp("floats"), "F32")


def pack_all(folder: Path, kind: str) -> dict[str, PackedWeights]:
    return {
        name: pack_gguf(write_family(folder / f"{name}.gguf", family, kind))
        for name, family in FAMILIES.items()
    }


def float32(weights: PackedWeights) -> NativeTarget:
    """The target around float32 arithmetic."""
    target = NativeTarget(weights, threads=1)
    target.model = Model(
        weights.shape,
        weights.tensors,
        windows=weights.config.windows,
        frequencies=weights.frequencies,
        cache_pages=64,
        max_positions=512,
        exact_activations=True,
    )
    return target


def logits(target: NativeTarget, family: Family, chunk: int = 7) -> Floats:
    """Logits of all positions, read in several passes so that the cache is used too."""
    tokens, rows = [int(token) for token in family.tokens], []
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        tree = Tree.chain(part[1:])
        rows.append(step(target, [(0, tokens[: start + 1], start, start + 1, tree)], [range(len(part) - 1)]))
    target.release([0])
    return np.concatenate(rows)


@ALL
def test_float32_arithmetic_gives_the_logits_of_transformers(
    packed: dict[str, PackedWeights], name: str
) -> None:
    found = logits(float32(packed[name]), FAMILIES[name])[list(SCORED)]
    assert np.abs(found - EXPECTED[name]).max() <= 1e-4


@ALL
@pytest.mark.parametrize("isa", COMPILED)
def test_the_kernels_give_the_logits_of_transformers_but_for_their_cache(
    packed_floats: dict[str, PackedWeights], name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With float32 matrices only keys and values are rounded, to 16 bits."""
    found = logits(make(monkeypatch, packed_floats[name], isa), FAMILIES[name])[list(SCORED)]
    error = np.abs(found - EXPECTED[name])
    assert error.max() <= 2e-2
    assert error.mean() <= 2e-3


@ALL
@pytest.mark.skipif(
    not (find_spec("torch") and find_spec("transformers")), reason="torch or transformers is not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_the_expected_logits_are_those_of_the_transformers_library_here(
    packed: dict[str, PackedWeights], name: str
) -> None:
    from tests.native.golden import transformers_logits

    theirs = transformers_logits.logits(FAMILIES[name])
    assert np.abs(theirs[list(SCORED)] - EXPECTED[name]).max() <= 1e-4
    assert np.abs(logits(float32(packed[name]), FAMILIES[name]) - theirs).max() <= 1e-4


def make(monkeypatch: pytest.MonkeyPatch, weights: PackedWeights, isa: str, threads: int = 2) -> NativeTarget:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    return NativeTarget(weights, threads=threads)


@ALL
@pytest.mark.parametrize("isa", COMPILED)
def test_the_kernels_agree_with_their_reference(
    packed_floats: dict[str, PackedWeights], name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a tree whose nodes see each other through a window."""
    rng = random.Random(5)
    history = [int(token) for token in FAMILIES[name].tokens][:21]
    tree = random_tree(rng, 30, VOCABULARY)
    found = []
    for path in (isa, "reference"):
        target = make(monkeypatch, packed_floats[name], path)
        read(target, 0, history[:-1])
        scores = target.forward(draft_of([(0, history, 20, 21, tree)]), frozenset({"hidden.1", "hidden.3"}))
        found.append({"logits": scores.logits.copy(), **scores.features})
    for part, wanted in found[1].items():
        error = np.abs(found[0][part] - wanted) / wanted.std()
        assert error.max() < 5e-3, (part, error.max())  # a key or value rounds the other way now and then
        assert error.mean() < 2e-4, (part, error.mean())


@ALL
@pytest.mark.parametrize("isa", COMPILED)
def test_a_rows_bits_do_not_depend_on_the_other_rows(
    packed: dict[str, PackedWeights], name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees deeper than the windows, with a neighbour, against one token at a time."""
    alone, together = (make(monkeypatch, packed[name], isa, threads) for threads in (1, 2))
    rng = random.Random(6)
    history = [int(token) for token in FAMILIES[name].tokens][:19]
    for nodes, chain in ((29, False), (17, True), (3, False), (0, False)):
        tree = random_tree(rng, nodes, VOCABULARY, chain=chain)
        read(together, 0, history[:-1], chunk=5)
        rows: list[Any] = [(0, history, 18, 19, tree)]
        if nodes % 2:
            rows.append((1, history[::-1], 0, 19, random_tree(rng, 4, VOCABULARY)))
        found = step(together, rows)
        together.release([0, 1])
        for node in {-1, nodes - 1, *rng.sample(range(nodes), min(nodes, 3))}:
            read(alone, 0, history[:-1], chunk=1)
            grown = history + [tree.tokens[i] for i in path_to(tree, node)]
            for end in range(19, len(grown) + 1):
                wanted = step(alone, [(0, grown[:end], end - 1, end, NOTHING)])
            alone.release([0])
            np.testing.assert_array_equal(found[1 + node], wanted[0])


@ALL
def test_a_change_outside_the_window_is_not_seen(packed: dict[str, PackedWeights], name: str) -> None:
    """And one inside is: a window counts the node itself."""
    config = packed[name].config
    everywhere = not all(config.windows)
    target = NativeTarget(packed[name], threads=1)
    tokens = [int(token) for token in FAMILIES[name].tokens]
    reach = 7 * config.layers  # each layer looks seven positions further back
    seen = []
    for place in (None, 39 - reach, 38 - reach):
        changed = list(tokens)
        if place is not None:
            changed[place] = (changed[place] + 1) % VOCABULARY
        read(target, 0, changed[:-1])
        seen.append(step(target, [(0, changed, 39, 40, NOTHING)])[0])
        target.release([0])
        if place is None and reach > 38:
            assert everywhere
            return
    assert (seen[0] != seen[1]).any()
    assert (seen[0] != seen[2]).any() == everywhere


def test_the_golden_file_is_the_one_of_the_manifest() -> None:
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    assert hashlib.sha256((GOLDEN / "expected.npz").read_bytes()).hexdigest() == manifest["sha256"]
    assert set(EXPECTED) == set(FAMILIES)
