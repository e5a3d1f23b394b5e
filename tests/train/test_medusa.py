"""Medusa's and Hydra's folders say what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paceline.errors import ConfigError
from paceline.models.bfloat16 import to_float32
from paceline.models.heads_folder import read_heads
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.trained.heads_reference import forward
from tests.train.conftest import Make


@pytest.mark.parametrize("kind", ["hydra", "medusa"])
def test_the_folder_gives_the_logits_of_training(kind: str, make: Make, tmp_path: Path, sharp: Path) -> None:
    make(tmp_path / "data", file=sharp, tokens=200)
    settings = Settings(arch=f"{kind}:depths=2,draft_vocab=100,layers=2", dtype="float32", held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    weights = read_heads(tmp_path / "out", kind)
    config = weights.config
    assert (config.depths, config.layers, config.shared, config.bias) == (2, 2, True, False)
    assert (config.hidden, config.draft_vocab_size, config.vocab_size) == (64, 100, 265)
    assert weights.token_ids.tolist() == run.drafter.vocabulary.tolist()
    assert all(np.abs(tensor).max() > 0 for tensor in weights.tensors.values()), "all was trained"

    run.drafter.load_state_dict({name: torch.from_numpy(t) for name, t in weights.tensors.items()})
    batch = collate(run.corpus, [0], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
    states = to_float32(run.corpus.states([0])[0][:, -1])
    normed = states / np.sqrt((states * states).mean(-1, keepdims=True) + 1e-5)
    embedded = run.teacher.embedding.float().numpy()[run.corpus.tokens(0)]
    first = int(run.corpus.prompts[0]) - 1
    for depth, logits in enumerate(trained):
        assert len(logits) > 5
        for base, found in enumerate(logits, first):
            wanted = forward(weights, normed[base], embedded[base + 1 : base + 2 + depth])
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("kind", ["hydra", "medusa"])
@pytest.mark.parametrize("option", ["depths=17", "layers=0", "draft_vocab=0"])
def test_values_out_of_range_are_refused(
    kind: str, option: str, make: Make, tmp_path: Path, sharp: Path
) -> None:
    make(tmp_path / "data", file=sharp, tokens=200)
    name, _, value = option.partition("=")
    with pytest.raises(ConfigError, match=f"{name} is {value}, allowed: 1 to"):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch=f"{kind}:{option}"), threads=1)
