"""Medusa's folder says what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from paceline.models.bfloat16 import to_float32
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from tests.train.conftest import Make


def test_the_folder_gives_the_logits_of_training(make: Make, tmp_path: Path, sharp: Path) -> None:
    make(tmp_path / "data", file=sharp, tokens=200)
    settings = Settings(arch="medusa:depths=2,draft_vocab=100,layers=2", dtype="float32", held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    blocks = {f"blocks.{head}.layers.{layer}.weight": [64, 64] for head in range(2) for layer in range(2)}
    assert shapes == {**blocks, "lm_heads.0.weight": [100, 64], "token_map": [100]}
    assert (config["num_heads"], config["num_hidden_layers"]) == (2, 2)
    assert (config["truncated_vocab_size"], config["vocab_size"]) == (100, 265)
    assert torch.equal(tensors["token_map"], run.drafter.vocabulary)

    weights = {name: tensor.float() for name, tensor in tensors.items() if name != "token_map"}
    run.drafter.load_state_dict(weights)
    batch = collate(run.corpus, [0], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
    states = to_float32(run.corpus.states([0])[0][:, -1])
    normed = states / np.sqrt((states * states).mean(-1, keepdims=True) + 1e-5)
    first = int(run.corpus.prompts[0]) - 1
    for head, logits in enumerate(trained):
        x = normed[first : first + len(logits)]
        for layer in range(2):
            gate = x @ weights[f"blocks.{head}.layers.{layer}.weight"].numpy().T
            x = x + gate / (1 + np.exp(-gate))
        np.testing.assert_allclose(logits, x @ weights["lm_heads.0.weight"].numpy().T, rtol=1e-3, atol=1e-4)
