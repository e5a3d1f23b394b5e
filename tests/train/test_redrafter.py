"""A recurrent drafter's folder says what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paceline.errors import ConfigError
from paceline.models.bfloat16 import to_float32
from paceline.models.redrafter_folder import read_redrafter
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.trained.redrafter_reference import forward
from tests.train.conftest import Make

CHOSEN = "redrafter:depths=3,draft_vocab=100,layers=2,inner=32"


@pytest.fixture
def run(make: Make, tmp_path: Path, sharp: Path) -> Run:
    make(tmp_path / "data", file=sharp, tokens=200)
    settings = Settings(arch=CHOSEN, dtype="float32", held_out=0.0)
    return Run(tmp_path / "data", tmp_path / "out", settings, threads=1)


def test_the_folder_gives_the_logits_of_training(run: Run, tmp_path: Path) -> None:
    run.train(lambda step, log: None)
    weights = read_redrafter(tmp_path / "out")
    config = weights.config
    assert (config.hidden, config.inner, config.layers, config.depths) == (64, 32, 2, 3)
    assert (config.draft_vocab_size, config.vocab_size) == (100, 265)
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


def test_a_fresh_one_says_what_the_target_said_a_token_earlier(run: Run) -> None:
    """Whatever is drafted: it has not learnt to read yet."""
    batch = collate(run.corpus, [0], torch.device("cpu"))
    head = run.teacher.head[run.drafter.vocabulary].float()
    with torch.no_grad():
        for depth, logits in enumerate(run.drafter.logits(batch)):
            wanted = run.teacher.logits(batch.states[:, :, -1][batch.bases(depth)], head)
            torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", ["depths=17", "layers=0", "draft_vocab=0"])
def test_values_out_of_range_are_refused(option: str, run: Run, tmp_path: Path) -> None:
    name, _, value = option.partition("=")
    with pytest.raises(ConfigError, match=f"{name} is {value}, allowed: 1 to"):
        Run(tmp_path / "data", tmp_path / "other", Settings(arch=f"redrafter:{option}"), threads=1)
    with pytest.raises(ConfigError, match="inner is 33, allowed: multiples of 32"):
        Run(tmp_path / "data", tmp_path / "other", Settings(arch="redrafter:inner=33"), threads=1)
