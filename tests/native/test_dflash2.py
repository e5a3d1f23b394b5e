"""The native forward of DFlash 2 drafters against the slow reference, and its own promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paceline import kernels
from paceline.models.dflash2_folder import BELOW, CONVOLUTIONS
from paceline.trained.dflash2_reference import convolved, follow
from paceline.trained.dflash_reference import forward, inject
from tests.dflash2 import CONFIG, random_drafter, run
from tests.native.test_dflash import TABLE, embedded, states
from tests.trained import embedding_of

V = CONFIG.vocab_size
EVERY = replace(CONFIG, candidates=V)
KINDS = {
    "two slots": EVERY,
    "four slots": replace(EVERY, kernel=4, group=32, layers=1),
    "one channel": replace(EVERY, kernel=1, group=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_slow_references(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts in one pass, on every instruction set, along a path."""
    config = KINDS[kind]
    weights, given, text = random_drafter(config), states(1, 41), [7, 11, 200, 3]
    head = kernels_head()
    parts = [[part[:30] for part in given], [part[30:] for part in given]]
    wanted = [
        follow(weights, head, embedded(config, 7), inject(weights, own), text[: config.depths])
        for own in parts
    ]
    for isa in kernels.available():
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        model = run(weights, embedding_of(TABLE))
        model.extend([3, 5], [30, 11], given)
        for found, exact in zip(zip(*model.draft([3, 5], [7, 7]), strict=True), wanted, strict=True):
            for place, (ids, logits, gates) in enumerate(zip(*found, strict=True)):
                scores = np.empty(V, np.float32)
                scores[ids] = logits + model.edges(text[place], gates, ids)
                error = np.abs(scores - exact[place]) / exact[place].std()
                assert error.max() < 0.35, (isa, error.max())
                assert error.mean() < 0.06, (isa, error.mean())
                behind = model.edges(text[place] ^ 1, gates, ids)
                wrong = np.abs(logits + behind - exact[place][ids]) / exact[place].std()
                assert wrong.mean() > 2 * error.mean(), "behind another token"


def kernels_head() -> np.ndarray:
    """The head that the kernels have of TABLE."""
    embedding = embedding_of(TABLE)
    return np.array([embedding.row(token) for token in range(V)])


def test_the_likeliest_tokens_without_the_selector_are_the_candidates() -> None:
    weights, given = random_drafter(), states(1, 20)
    model = run(weights, embedding_of(TABLE))
    model.extend([0], [20], given)
    ids, logits, _ = (part[0] for part in model.draft([0], [9]))
    unary = model.forward([0], [9])[0]
    for place in range(CONFIG.depths):
        assert set(ids[place]) == set(np.argsort(-unary[place])[: CONFIG.candidates])
        np.testing.assert_array_equal(logits[place], unary[place, ids[place]])
    slow = follow(weights, kernels_head(), embedded(CONFIG, 9), inject(weights, given), [9])
    assert np.isfinite(slow).sum() == CONFIG.candidates


def test_with_nothing_learnt_it_is_dflash() -> None:
    """Convolutions that change nothing, a selector that adds nothing."""
    weights, given = random_drafter(EVERY), states(2, 9)
    tensors = dict(weights.tensors)
    tensors[BELOW] = np.zeros_like(tensors[BELOW])
    for number in range(EVERY.layers):
        for name in CONVOLUTIONS:
            at = f"layers.{number}.{name}."
            tensors[at + "kernel_projection.weight"] *= 0
            tensors[at + "base_kernel"][:] = 0
            tensors[at + "base_kernel"][:, 0] = 1
    plain = replace(weights, tensors=tensors)
    block, injected = embedded(EVERY, 4), inject(plain, given)
    found = follow(plain, TABLE, block, injected, [4, 1, 2, 3])
    np.testing.assert_allclose(found, forward(plain, TABLE, block, injected), rtol=1e-5, atol=1e-5)


def test_a_convolution_reads_its_own_slot_and_those_before_it() -> None:
    """Channel by channel, from the formula."""
    rng = np.random.default_rng(0)
    x, base, added = (rng.standard_normal(shape) for shape in ((5, 6), (3, 6), (5, 3, 2)))
    wanted = np.zeros((5, 6))
    for i in range(5):
        for channel in range(6):
            for back in range(min(i, 2) + 1):
                kernel = base[back, channel] + added[i, back, channel // 3]
                wanted[i, channel] += kernel * x[i - back, channel]
    np.testing.assert_allclose(convolved(x, base, added), wanted)


@pytest.mark.parametrize("isa", kernels.available())
def test_a_sequences_bits_do_not_depend_on_others(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    alone, together = (run(random_drafter(), embedding_of(TABLE)) for _ in range(2))
    given, beside = states(5, 37), states(6, 19)
    for at in range(37):
        alone.extend([0], [1], [part[at : at + 1] for part in given])
    together.extend([0, 1], [37, 19], [np.concatenate(both) for both in zip(given, beside, strict=True)])
    for found, own in zip(together.draft([1, 0], [3, 8]), alone.draft([0], [8]), strict=True):
        np.testing.assert_array_equal(found[1], own[0])
