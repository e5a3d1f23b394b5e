"""The native forward of recurrent drafters against the slow reference, and its own promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paceline import kernels
from paceline.errors import IncompatibleDrafter
from paceline.kernels.packing import dequantise
from paceline.models.redrafter_folder import RedrafterConfig
from paceline.targets.native import NativeTarget
from paceline.trained.redrafter import NativeRedrafter
from paceline.trained.redrafter_reference import forward
from tests.heads import embeddings
from tests.native.models import random_weights
from tests.redrafter import CONFIG, random_drafter, run
from tests.trained import embedding_of

KINDS = {
    "two layers": CONFIG,
    "a cell alone": replace(CONFIG, layers=1),
    "all tokens": replace(CONFIG, draft_vocab_size=CONFIG.vocab_size),
}
PATHS = [(7, 1, 2), (8, 9, 4), (7, 3, 3), (5, 5, 5)]


def states(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, CONFIG.hidden), np.float32)


def along(drafter: NativeRedrafter, given: np.ndarray, paths: list[tuple[int, ...]]) -> np.ndarray:
    """Logits behind the paths, all of the same length."""
    for tokens in zip(*paths, strict=True):
        logits, given = drafter.forward(given, tokens)
    return logits


@pytest.mark.parametrize("config", KINDS.values(), ids=list(KINDS))
def test_logits_equal_the_slow_references(config: RedrafterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, given = random_drafter(config), states(len(PATHS))
    table = embeddings(config)
    wanted = np.stack([forward(weights, x, table[[*path]]) for x, path in zip(given, PATHS, strict=True)])
    for isa in kernels.available():
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        found = along(run(weights), given, PATHS)
        assert found.shape == (len(PATHS), config.draft_vocab_size)
        error = np.abs(found - wanted) / wanted.std()
        assert error.max() < 0.15, (isa, error.max())
        assert error.mean() < 0.02, (isa, error.mean())


def test_each_token_of_a_path_changes_what_is_said() -> None:
    """The twin: the tolerance above tells paths, and layers, apart."""
    drafter, path = run(random_drafter()), (7, 120, 9)
    logits = along(drafter, states(1), [path])
    for place in range(3):
        other = along(drafter, states(1), [(*path[:place], 30, *path[place + 1 :])])
        assert np.abs(other - logits).max() > 0.3 * logits.std()
    shallow = replace(random_drafter(), config=replace(CONFIG, layers=1))
    assert np.abs(along(run(shallow), states(1), [path]) - logits).max() > 0.5 * logits.std()


def test_embeddings_are_the_targets_packed_rows() -> None:
    target = NativeTarget(random_weights(), threads=1)
    kind, packed, *shape = target.embedding()
    table = dequantise(kind, shape[0], shape[1], packed)
    weights, paths = random_drafter(), [(5, 201), (16, 15)]
    found = along(NativeRedrafter(weights, target.embedding()), states(2), paths)
    for x, path, logits in zip(states(2), paths, found, strict=True):
        wanted = forward(weights, x, table[[*path]])
        assert np.abs(logits - wanted).max() < 0.15 * wanted.std()


@pytest.mark.parametrize("isa", kernels.available())
def test_a_rows_bits_do_not_depend_on_the_other_rows(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    drafter, given = run(random_drafter()), states(len(PATHS))
    together = along(drafter, given, PATHS)
    for at, path in enumerate(PATHS):
        np.testing.assert_array_equal(along(drafter, given[at : at + 1], [path])[0], together[at])


def test_large_numbers_do_no_harm() -> None:
    assert np.isfinite(along(run(random_drafter()), 1e4 * states(2), [(1,), (2,)])).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((204, 96), "for a target of 203 tokens, this one has 204"),
        ((203, 128), "for a target of 96 wide hidden states, this one has 128"),
    ],
)
def test_a_drafter_for_another_target_is_refused(shape: tuple[int, int], message: str) -> None:
    with pytest.raises(IncompatibleDrafter, match=message):
        NativeRedrafter(random_drafter(), embedding_of(np.zeros(shape, np.float32)))


@pytest.mark.parametrize(("key", "name"), [("hidden", "hidden_size"), ("inner", "intermediate_size")])
def test_a_width_that_kernels_do_not_have_is_refused(key: str, name: str) -> None:
    config = replace(CONFIG, **{key: 40})
    table = embedding_of(np.zeros((203, config.hidden), np.float32))
    with pytest.raises(IncompatibleDrafter, match=f"{name} is 40, the kernels need a multiple of 32"):
        NativeRedrafter(replace(random_drafter(), config=config), table)
