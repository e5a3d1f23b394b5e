"""The native forward of heads against the slow reference, and its own promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paceline import kernels
from paceline.errors import IncompatibleDrafter
from paceline.kernels.packing import dequantise
from paceline.models.heads_folder import HeadsConfig
from paceline.targets.native import NativeTarget
from paceline.trained.heads import NativeHeads
from paceline.trained.heads_reference import forward
from tests.heads import CONFIG, embeddings, random_heads, run
from tests.native.models import random_weights
from tests.trained import embedding_of

KINDS = {
    "shared": CONFIG,
    "hydra": replace(CONFIG, kind="hydra"),
    "plain": replace(CONFIG, bias=False, layers=1),
    "own heads": replace(CONFIG, shared=False),
    "all tokens": replace(CONFIG, draft_vocab_size=CONFIG.vocab_size),
}
PATHS = [(7, 1, 2), (7,), (8, 9), (7, 3), (5, 5, 5)]


def states(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, CONFIG.hidden), np.float32)


@pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))
def test_logits_equal_the_slow_references(config: HeadsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, given = random_heads(config), states(len(PATHS))
    table = embeddings(config)
    wanted = np.stack([forward(weights, x, table[[*path]]) for x, path in zip(given, PATHS, strict=True)])
    for isa in kernels.available():
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        found = run(weights).forward(given, PATHS)
        assert found.shape == (len(PATHS), config.draft_vocab_size)
        error = np.abs(found - wanted) / wanted.std()
        assert error.max() < 0.15, (isa, error.max())
        assert error.mean() < 0.02, (isa, error.mean())


def test_another_head_says_something_else() -> None:
    """The twin: the tolerance above tells heads, and layers of blocks, apart."""
    weights, x = random_heads(), states(1)
    first, second = (run(weights).forward(x, [(1,) * (depth + 1)])[0] for depth in range(2))
    assert np.abs(first - second).max() > 0.5 * first.std()
    shallow = replace(weights, config=replace(CONFIG, layers=1))
    assert np.abs(forward(shallow, x[0], embeddings(CONFIG)[[1]]) - first).max() > 0.5 * first.std()


@pytest.mark.parametrize("kind", ["hydra", "medusa"])
def test_hydras_heads_read_each_token_of_a_path_and_medusas_none(kind: str) -> None:
    heads, path = run(random_heads(replace(CONFIG, kind=kind))), (7, 120, 9)
    logits = heads.forward(states(1), [path])
    for place in range(3):
        other = heads.forward(states(1), [[*path[:place], 30, *path[place + 1 :]]])
        assert (np.abs(other - logits).max() > 0.1 * logits.std()) == (kind == "hydra")


def test_embeddings_are_the_targets_packed_rows() -> None:
    target = NativeTarget(random_weights(), threads=1)
    kind, packed, *shape = target.embedding()
    table = dequantise(kind, shape[0], shape[1], packed)
    weights = random_heads(replace(CONFIG, kind="hydra"))
    found = NativeHeads(weights, target.embedding()).forward(states(2), [(5, 201), (16, 15)])
    for x, path, logits in zip(states(2), [(5, 201), (16, 15)], found, strict=True):
        wanted = forward(weights, x, table[[*path]])
        assert np.abs(logits - wanted).max() < 0.15 * wanted.std()


@pytest.mark.parametrize("isa", kernels.available())
def test_a_rows_bits_do_not_depend_on_the_other_rows(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    heads, given = run(random_heads()), states(len(PATHS))
    together = heads.forward(given, PATHS)
    for at, path in enumerate(PATHS):
        np.testing.assert_array_equal(heads.forward(given[at : at + 1], [path])[0], together[at])


def test_large_numbers_do_no_harm() -> None:
    assert np.isfinite(run(random_heads()).forward(1e4 * states(2), [(1,), (2,)])).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((204, 96), "for a target of 203 tokens, this one has 204"),
        ((203, 128), "for a target of 96 wide hidden states, this one has 128"),
    ],
)
def test_heads_for_another_target_are_refused(shape: tuple[int, int], message: str) -> None:
    with pytest.raises(IncompatibleDrafter, match=message):
        NativeHeads(random_heads(), embedding_of(np.zeros(shape, np.float32)))


def test_a_width_that_kernels_do_not_have_is_refused() -> None:
    config = replace(CONFIG, hidden=40)
    with pytest.raises(IncompatibleDrafter, match="hidden_size is 40, the kernels need a multiple of 32"):
        NativeHeads(replace(random_heads(), config=config), embedding_of(np.zeros((203, 40), np.float32)))
