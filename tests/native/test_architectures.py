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
from paceline.core import Tree
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
    folder = tmp_path_factory.mktemp("families")
    return {
        name: pack_gguf(write_family(folder / f"{name}.gguf", family)) for name, family in FAMILIES.items()
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
