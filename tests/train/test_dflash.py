"""Training DFlash sees what drafting with it does, and its folder says what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paceline.errors import ConfigError
from paceline.models.dflash_folder import HEAD, read_dflash
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.trained.dflash_export import export_dflash
from paceline.trained.dflash_reference import forward, inject
from tests.train.conftest import Make

DEPTHS = 3


@pytest.fixture
def run(make: Make, tmp_path: Path, sharp: Path) -> Run:
    make(tmp_path / "data", file=sharp, tokens=200)
    arch = f"dflash:depths={DEPTHS},layers=2,draft_vocab=100"
    settings = Settings(arch=arch, dtype="float32", batch_tokens=100, epochs=3, held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    return run


def test_training_computes_what_drafting_does(run: Run, tmp_path: Path) -> None:
    """Of every base, by the reference on the folder: the block sees the text up to there and no further."""
    weights = read_dflash(tmp_path / "out")
    run.drafter.load_state_dict({name: torch.from_numpy(part) for name, part in weights.tensors.items()})
    batch = collate(run.corpus, [0, 1, 2], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
    embedding = run.teacher.embedding.float().numpy()
    places = [
        {tuple(base): at for at, base in enumerate(torch.nonzero(batch.bases(depth)).tolist())}
        for depth in range(DEPTHS)
    ]
    errors: list[float] = []
    shifted: list[float] = []  # where the block sees one position less
    for (row, base), at in places[0].items():
        if at % 3:
            continue
        states = batch.states[row].float().numpy()
        block = [int(batch.tokens[row, base + 1]), *[weights.config.mask_token] * DEPTHS]
        drafted = [
            forward(
                weights, weights.tensors[HEAD], embedding[block], inject(weights, [states[: known + 1, 0]])
            )
            for known in (base, base - 1)
        ]
        for depth in range(DEPTHS):
            if (row, base) in places[depth]:
                found = trained[depth][places[depth][row, base]]
                for kept, other in zip((errors, shifted), drafted, strict=True):
                    kept.append(float(np.abs(found - other[depth]).max()))
    assert len(errors) > 20
    assert max(errors) < 5e-5
    assert np.median(shifted) > 20 * max(errors)


def test_the_folder_has_all_that_engines_ask_for(run: Run, tmp_path: Path) -> None:
    weights = read_dflash(tmp_path / "out")
    config = weights.config
    assert (config.layers, config.block, config.depths) == (2, DEPTHS + 1, DEPTHS)
    assert config.layer_ids == (0,)
    assert (config.vocab_size, config.draft_vocab_size) == (265, 100)
    assert run.teacher.counts[config.mask_token] == run.teacher.counts.min()
    assert torch.equal(torch.from_numpy(weights.token_ids), run.drafter.vocabulary)
    assert config.verifier.endswith("sharp.gguf")
    assert weights.tensors.keys() == config.shapes.keys() | {HEAD}
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16, torch.int64, torch.bool}


def test_with_the_targets_head_it_is_exported_in_the_native_form(
    make: Make, tmp_path: Path, two_layers: Path
) -> None:
    """Which counts the layers, so that its ids are one less; training does not change the target's head."""
    make(tmp_path / "data", file=two_layers, tokens=200, taps=("hidden.1",))
    settings = Settings(arch="dflash:depths=3,head=target", dtype="float32", epochs=2, held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    given = run.teacher.head.clone()
    run.train(lambda step, log: None)
    assert torch.equal(run.drafter.head, given.float())
    weights = read_dflash(tmp_path / "out")
    assert HEAD not in weights.tensors
    assert weights.token_ids.tolist() == list(range(265))
    written = export_dflash(weights, "sglang", tmp_path / "native", "org/target")
    assert written.difference == 0
    assert weights.config.layer_ids == (1,)
    assert written.config["dflash_config"]["target_layer_ids"] == [0]
    assert read_dflash(tmp_path / "native").config.layer_ids == (1,)
    held = load_file(tmp_path / "native" / "model.safetensors")
    assert held.keys() == weights.config.shapes.keys()
    again = Run(
        tmp_path / "data", tmp_path / "more", replace(settings, start_from=str(tmp_path / "out")), threads=1
    )
    assert torch.equal(again.drafter.fc.weight, torch.from_numpy(weights.tensors["fc.weight"]))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("dflash:layers=0", "layers is 0, allowed: 1 to 8"),
        ("dflash:depths=17", "depths is 17, allowed: 1 to 16"),
        ("dflash:head=mine", "head is 'mine', allowed: own, target"),
    ],
)
def test_bad_options_are_refused(make: Make, tmp_path: Path, arch: str, message: str) -> None:
    make(tmp_path / "data", tokens=60)
    with pytest.raises(ConfigError, match=message):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch=arch), threads=1)
