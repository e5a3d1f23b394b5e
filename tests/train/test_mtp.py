"""Training MTP unrolls what drafting with it does, and its folder says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paceline.errors import ConfigError
from paceline.models.mtp_folder import read_mtp
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.trained.mtp_reference import forward
from tests.train.conftest import Make

DEPTHS = 3


@pytest.fixture
def run(make: Make, tmp_path: Path, sharp: Path) -> Run:
    """From a data set that holds the last states alone: a module reads no others."""
    make(tmp_path / "data", file=sharp, tokens=200, taps=("hidden.1",))
    arch = f"mtp:depths={DEPTHS},draft_vocab=100"
    settings = Settings(arch=arch, dtype="float32", batch_tokens=100, epochs=3, held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    return run


def test_training_unrolls_what_drafting_does(run: Run, tmp_path: Path) -> None:
    """By the reference on the folder: slots up to the base read the target's states, those behind it what the
    module made itself, and all of them the next token of the text."""
    weights = read_mtp(tmp_path / "out")
    run.drafter.load_state_dict({name: torch.from_numpy(part) for name, part in weights.tensors.items()})
    batch = collate(run.corpus, [0, 1, 2], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
        last = run.teacher.last(batch.states[:, :, -1]).numpy()
    embedding = run.teacher.embedding.float().numpy()
    head = run.teacher.head.float().numpy()[weights.token_ids]
    errors: list[float] = []
    shifted: list[float] = []  # a longer prefix and a shorter draft lead to the same token, not the same law
    for depth in range(DEPTHS):
        bases = torch.nonzero(batch.bases(depth)).tolist()
        assert len(bases) == len(trained[depth]) > 10
        for at in range(0, len(bases), 3):
            row, base = bases[at]
            read = embedding[batch.tokens[row, 1 : base + 2 + depth]]
            for first, kept in ((base, errors), (base + 1, shifted))[: 1 + (depth > 0)]:
                states = last[row, : first + 1]
                for end in range(first + 1, len(read) + 1):
                    logits, fed_on = forward(weights, head, read[:end], states)
                    states = np.concatenate([states, fed_on[-1:]])
                kept.append(float(np.abs(trained[depth][at] - logits[-1]).max()))
    assert max(errors) < 2e-4
    assert np.median(shifted) > 20 * max(errors)


def test_the_folder_says_what_was_trained(run: Run, tmp_path: Path) -> None:
    weights = read_mtp(tmp_path / "out")
    config = weights.config
    assert (config.target_layers, config.draft_tokens) == (1, DEPTHS)
    assert (config.vocab_size, config.draft_vocab_size) == (265, 100)
    assert torch.equal(torch.from_numpy(weights.token_ids), run.drafter.vocabulary)
    assert config.verifier.endswith("sharp.gguf")
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert held.keys() == config.shapes.keys() | {"d2t", "t2d"}
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16, torch.int64, torch.bool}


def test_the_targets_head_is_left_alone(run: Run) -> None:
    rows = run.teacher.head[run.drafter.vocabulary].float()
    assert torch.equal(run.drafter.head, rows)
    assert all(weight.shape != rows.shape for weight in run.drafter.parameters())


def test_another_run_goes_on_from_it_with_its_tokens(run: Run, tmp_path: Path) -> None:
    settings = Settings(arch=run.settings.arch, dtype="float32", start_from=str(tmp_path / "out"))
    again = Run(tmp_path / "data", tmp_path / "again", settings, threads=1)
    held = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in again.drafter.named_parameters():
        torch.testing.assert_close(weight.data, held[name].float())
    assert torch.equal(again.drafter.head, run.drafter.head)


def test_bad_options_are_refused(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "data", tokens=60)
    with pytest.raises(ConfigError, match="depths is 17, allowed: 1 to 16"):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch="mtp:depths=17"), threads=1)
