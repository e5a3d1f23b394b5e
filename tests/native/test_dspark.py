"""The native forward of DSpark drafters against the slow reference, and its own promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paceline import kernels
from paceline.errors import IncompatibleDrafter
from paceline.models.dflash_folder import HEAD
from paceline.trained.dflash_reference import forward, inject
from paceline.trained.dspark_reference import follow
from tests.dspark import CONFIG, random_drafter, run
from tests.trained import embedding_of

V = CONFIG.vocab_size
TABLE = np.random.default_rng(9).standard_normal((V, CONFIG.hidden), np.float32)
KINDS = {
    "from the anchor": CONFIG,
    "from the masks": replace(CONFIG, from_anchor=False),
    "states alone": replace(CONFIG, confidence_tokens=False),
    "no confidence": replace(CONFIG, confidence=False, confidence_tokens=False),
}


def states(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.standard_normal((len(CONFIG.layer_ids), count, CONFIG.hidden), np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_laws_and_confidences_equal_the_slow_references(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a path, on every instruction set."""
    config = KINDS[kind]
    weights, given, path = random_drafter(config), states(1, 30), [7, 91, 200, 3][: config.depths]
    block = TABLE[[7, *[config.mask_token] * (config.block - 1)]]
    wanted, certain = follow(weights, weights.tensors[HEAD], block, inject(weights, given), path)
    assert wanted.shape == (config.depths, config.draft_vocab_size)
    assert (config.depths == config.block) is config.from_anchor
    assert np.ptp(certain) > 0.03 if config.confidence else (certain == 1).all()
    bare = forward(weights, weights.tensors[HEAD], block, inject(weights, given))
    assert np.abs(wanted - bare).max() > 0.3 * bare.std(), "tokens matter"
    for isa in kernels.available():
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        model = run(weights, embedding_of(TABLE))
        model.extend([3], [30], given)
        logits, confidences = model.draft([3], [7])
        error = np.abs(logits[0] + model.bias(path) - wanted) / wanted.std()
        assert error.max() < 0.15, (isa, error.max())
        assert error.mean() < 0.03, (isa, error.mean())
        found = 1 / (1 + np.exp(-(confidences[0] + model.trust[path])))
        assert np.abs(found - certain).max() < 0.02


def test_a_sequences_bits_do_not_depend_on_others() -> None:
    alone, together = (run(random_drafter(), embedding_of(TABLE)) for _ in range(2))
    given, beside = states(5, 37), states(6, 19)
    alone.extend([0], [37], given)
    together.extend([0, 1], [37, 19], [np.concatenate(both) for both in zip(given, beside, strict=True)])
    for one, other in zip(alone.draft([0], [8]), together.draft([1, 0], [3, 8]), strict=True):
        np.testing.assert_array_equal(one[0], other[1])
    np.testing.assert_array_equal(alone.bias([5, 9, 11])[1:2], alone.bias([9]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 204}, "for a target of 204 tokens, this one has 203"),
        ({"rank": 24}, "the drafter's markov_rank is 24, the kernels need a multiple of 32"),
        ({"layer_ids": (0, 2, 4)}, "reads the hidden states 0, 2, 4, a target of 3 layers has 0 to 3"),
    ],
)
def test_a_drafter_for_another_target_is_refused(changes: dict[str, object], message: str) -> None:
    weights = replace(random_drafter(), config=replace(CONFIG, **changes))  # type: ignore[arg-type]
    with pytest.raises(IncompatibleDrafter, match=message):
        run(weights, embedding_of(TABLE), layers=3)
