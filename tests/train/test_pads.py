"""Training pads sees what drafting with them does, and a target that can use them is learnt to near
certainty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paceline.errors import ConfigError, TrainingError
from paceline.models.pads_folder import read_pads
from paceline.targets.weights import load_weights
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.train.target_layers import TargetLayers
from paceline.trained.pads_reference import forward
from tests.native.models import CONFIG, random_weights
from tests.train.conftest import Make, answers_of
from tests.train.test_loop import SMALL, accepted

DEPTHS = 3


@pytest.fixture
def run(make: Make, tmp_path: Path, sharp: Path) -> Run:
    make(tmp_path / "data", file=sharp, tokens=200)
    settings = Settings(
        arch=f"pads:depths={DEPTHS},draft_vocab=100",
        dtype="float32",
        batch_tokens=100,
        epochs=3,
        held_out=0.0,
        learning_rate=1e-2,
    )
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    return run


def test_training_computes_what_drafting_does(run: Run, tmp_path: Path, sharp: Path) -> None:
    """At bases all over the text, by the reference on the folder and the target's own file."""
    weights = read_pads(tmp_path / "out")
    assert weights.config.depths == DEPTHS
    assert weights.token_ids.tolist() == run.drafter.vocabulary.tolist()
    named = {f"embeddings.{place}": torch.from_numpy(row) for place, row in enumerate(weights.embeddings)}
    run.drafter.load_state_dict(named)
    batch = collate(run.corpus, [0, 1], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
    target = load_weights(sharp)
    checked = 0
    for depth, logits in enumerate(trained):
        bases = torch.nonzero(batch.bases(depth)).tolist()
        assert len(bases) == len(logits) > 5
        for at in range(0, len(bases), 4):
            row, base = bases[at]
            wanted = forward(weights, target, batch.tokens[row, : base + 1].tolist())
            np.testing.assert_allclose(logits[at], wanted[depth], rtol=1e-4, atol=1e-4)
            other = forward(weights, target, batch.tokens[row, :base].tolist())
            assert np.abs(logits[at] - other[depth]).max() > 0.5, "the twin: a token less"
            checked += 1
    assert checked > 6


def test_only_the_pads_change(run: Run) -> None:
    assert [name for name, _ in run.drafter.named_parameters()] == [
        f"embeddings.{place}" for place in range(DEPTHS)
    ]
    first, second, third = (part.detach() for part in run.drafter.parameters())
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.fixture
def recalling(write_gguf: Any) -> Path:
    """A target that says after each token the next one of its vocabulary, and whose one layer can be asked
    which token stands a place or two before: 20 columns hold the token, 20 each what a head found, and single
    ones a mark that all tokens have and those with which a head asks for the nearest mark."""
    import gguf

    rng = np.random.default_rng(1)
    token = rng.standard_normal((265, 20)).astype(np.float32)
    token /= np.linalg.norm(token, axis=1, keepdims=True)
    embedding, head = np.zeros((265, 64), np.float32), np.zeros((265, 64), np.float32)
    embedding[:, :20], embedding[:, 60] = token, 1
    head[:, :60] = 2 * np.concatenate([np.roll(token, by, axis=0) for by in (1, 2, 3)], axis=1)
    q, k, v, o = (np.zeros(shape, np.float32) for shape in ((64, 64), (32, 64), (32, 64), (64, 64)))
    near = np.arange(0, 8, 2)  # pairs whose rotation is fast enough to tell neighbours apart
    q[near, 61] = q[32 + near, 62] = k[near, 60] = 1
    v[np.arange(20), np.arange(20)] = 1
    o[20 + np.arange(20), np.arange(20)] = o[40 + np.arange(20), 32 + np.arange(20)] = 0.2
    kind = gguf.GGMLQuantizationType.F32
    tensors: dict[str, Any] = {
        "token_embd.weight": (embedding, kind),
        "output.weight": (head, kind),
        "blk.0.attn_q.weight": (q, kind),
        "blk.0.attn_k.weight": (k, kind),
        "blk.0.attn_v.weight": (v, kind),
        "blk.0.attn_output.weight": (o, kind),
        "blk.0.ffn_down.weight": (np.zeros((64, 96), np.float32), kind),
    }
    return Path(write_gguf({"llama.context_length": 512}, tensors, name="recalling.gguf"))


def test_pads_overfit_a_target_that_can_use_them(make: Make, tmp_path: Path, recalling: Path) -> None:
    manifest = make(tmp_path / "data", file=recalling, tokens=300, max_tokens=16)
    settings = SMALL | {
        "arch": "pads:depths=2,draft_vocab=265",
        "epochs": 130,
        "batch_tokens": 1000,
        "learning_rate": 5e-2,
        "ema": 0.9,
        "measure_every": 1000,
        "checkpoint_every": 1000,
    }
    run = Run(tmp_path / "data", tmp_path / "out", Settings(**settings), threads=1)
    assert run.measure(run.drafter)["tau_greedy"] < 1.5
    estimate = run.train(lambda step, log: None)["estimate"]
    assert estimate["tau_greedy"] > 2.7, "of 3 at most"
    spec = f"pads:model={tmp_path / 'out'},widths=1x1,min_probability=0"
    assert accepted(recalling, answers_of(tmp_path / "data", manifest), spec) > 0.9


def test_values_out_of_range_are_refused(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "data", tokens=60)
    with pytest.raises(ConfigError, match="depths is 17, allowed: 1 to 16"):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch="pads:depths=17"), threads=1)


def test_layers_that_are_not_implemented_are_refused_by_name() -> None:
    weights = random_weights(("F32",))
    TargetLayers(weights, torch.device("cpu"))
    gemma = replace(CONFIG, architecture="gemma3", post_norms=True)
    with pytest.raises(ConfigError, match="through the layers of architecture gemma3 is not there"):
        TargetLayers(replace(weights, config=gemma), torch.device("cpu"))


def test_another_file_than_the_one_that_answered_is_refused(make: Make, tmp_path: Path, model: Path) -> None:
    make(tmp_path / "data", tokens=60)
    with model.open("ab") as file:
        file.write(bytes(1))
    with pytest.raises(TrainingError, match="is another file than the one that gave the answers"):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch="pads"), threads=1)
