"""Training exits sees what drafting with them does; the target stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paceline.errors import ConfigError
from paceline.models.bfloat16 import to_float32
from paceline.models.exit_folder import read_exits
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.trained.exits_reference import readout
from tests.train.conftest import Make, answers_of
from tests.train.test_loop import accepted, train

TAPS = ("hidden.0", "hidden.1", "hidden.2", "hidden.3")


def test_the_folder_gives_the_logits_of_training(make: Make, tmp_path: Path, deep: Path) -> None:
    make(tmp_path / "data", file=deep, tokens=200, taps=TAPS)
    arch = "exit:depths=2,draft_vocab=100"
    settings = Settings(arch=arch, dtype="float32", batch_tokens=200, epochs=2, held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    head = run.drafter.head.clone()
    run.train(lambda step, log: None)
    assert torch.equal(run.drafter.head, head), "the target's"
    weights = read_exits(tmp_path / "out")
    config = weights.config
    assert (config.exits, config.layers, config.hidden, config.vocab_size) == ((1, 2), 3, 64, 265)
    assert all(np.abs(tensor).max() > 0 for tensor in weights.tensors.values()), "all was trained"

    run.drafter.load_state_dict({name: torch.from_numpy(t) for name, t in weights.tensors.items()})
    batch = collate(run.corpus, [0], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
        learnt = [(read @ head.T).numpy() for read in run.drafter.study(batch)]
    states = to_float32(run.corpus.states([0])[0])
    first = int(run.corpus.prompts[0]) - 1
    for found, exit, depth in zip(trained + learnt, (2, 2, 1, 2), (0, 1, 0, 0), strict=True):
        assert len(found) > 5
        read = states[first + 1 + depth :, exit][: len(found)]
        wanted = readout(weights, exit, read, head.numpy())
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("exit", [1, 2])
def test_exits_overfit_a_tiny_target(exit: int, make: Make, tmp_path: Path, deep: Path) -> None:
    """By the estimate, and in the engine, where exits that were not trained are hardly ever right."""
    manifest = make(tmp_path / "data", file=deep, tokens=150, max_tokens=16, taps=(f"hidden.{exit}",))
    arch = "exit:depths=3,draft_vocab=265"
    settings: dict[str, Any] = {"arch": arch, "batch_tokens": 1000, "ema": 0.9, "learning_rate": 2e-2}
    rare = {"measure_every": 1000, "checkpoint_every": 1000}
    card = train(tmp_path / "data", tmp_path / "out", epochs=200, **settings, **rare)
    assert card["estimate"]["tau_greedy"] > 3.6, "of 4 at most"
    assert card["estimate"]["tau_sampled"] > 3.3, "of 4 at most"
    answers = answers_of(tmp_path / "data", manifest)
    chain = f"layers={exit},widths=1x1x1,min_probability=0"
    assert accepted(deep, answers, f"exit:model={tmp_path / 'out'},{chain}") > 0.85
    assert accepted(deep, answers, f"exit:{chain}") < 0.5


@pytest.mark.parametrize(
    ("arch", "taps", "message"),
    [
        ("exit:depths=0", TAPS, "depths is 0, allowed: 1 to 16"),
        ("exit:draft_vocab=0", TAPS, "draft_vocab is 0, allowed: 1 to"),
        ("exit", ("hidden.0",), "exit reads hidden states of inner layers"),
    ],
)
def test_bad_options_are_refused(
    arch: str, taps: tuple[str, ...], message: str, make: Make, tmp_path: Path, deep: Path
) -> None:
    make(tmp_path / "data", file=deep, tokens=60, taps=taps)
    with pytest.raises(ConfigError, match=message):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch=arch), threads=1)
