"""The native forward of P-EAGLE drafters against the slow reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paceline import kernels
from paceline.core import Tree
from paceline.errors import IncompatibleDrafter
from paceline.trained.eagle3_reference import fuse
from paceline.trained.peagle_reference import draft, mask_states
from tests.native.models import draft_of
from tests.peagle import CONFIG, random_drafter, run
from tests.trained import embedding_of

V = CONFIG.vocab_size


@pytest.mark.parametrize("layers", [1, 2])
def test_a_chain_of_masks_gives_the_slow_references_laws(
    layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every instruction set, with a part of the text in the cache."""
    config = replace(CONFIG, layers=layers)
    weights, rng = random_drafter(config), np.random.default_rng(5)
    shared = rng.standard_normal((V, config.hidden), np.float32)
    text = rng.integers(V, size=31).tolist()
    states = [rng.standard_normal((30, config.target_hidden), np.float32) for _ in range(3)]
    wanted = draft(weights, shared, text, fuse(weights, states))
    for isa in kernels.available():
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        model = run(weights, embedding_of(shared), 3)
        exact = fuse(weights, mask_states(weights))[0]
        assert np.abs(model.mask_feature - exact).max() < 0.05 * exact.std(), isa
        features = np.ascontiguousarray(model.fuse(states))
        cached = draft_of([(3, text[1:], 0, 20, Tree.chain([]))])
        cached = replace(cached, scored=np.zeros(0, np.int32))
        model.forward(cached, features[:20])
        model.commit(replace(cached, roots=(cached.offsets[1:] - 1).tolist()))
        chain = Tree.chain([config.mask_token] * (config.draft_tokens - 1))
        masks = np.repeat(model.mask_feature[None], config.draft_tokens - 1, axis=0)
        logits, _ = model.forward(
            draft_of([(3, text[1:], 20, 30, chain)]), np.concatenate([features[20:], masks])
        )
        error = np.abs(logits - wanted) / wanted.std()
        assert error.max() < 0.2, (isa, error.max())
        assert error.mean() < 0.03, (isa, error.mean())


def test_a_drafter_for_another_target_is_refused() -> None:
    weights = random_drafter(replace(CONFIG, target_hidden=128))
    with pytest.raises(IncompatibleDrafter, match="for a target of 128 wide hidden states, this one has 96"):
        run(weights, embedding_of(np.zeros((V, 96), np.float32)), 3)
