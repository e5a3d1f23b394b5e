"""Training P-EAGLE sees what drafting with it does, and its folder says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paceline.errors import ConfigError
from paceline.models.eagle3_folder import MASK_HIDDEN, read_eagle3
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.trained.eagle3_reference import fuse
from paceline.trained.peagle_reference import draft
from tests.train.conftest import Make

DEPTHS = 3


@pytest.fixture
def run(make: Make, tmp_path: Path, sharp: Path) -> Run:
    make(tmp_path / "data", file=sharp, tokens=200)
    arch = f"peagle:depths={DEPTHS},layers=2,draft_vocab=100"
    settings = Settings(arch=arch, dtype="float32", batch_tokens=100, epochs=3, held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    return run


def test_training_computes_what_drafting_does(run: Run, tmp_path: Path) -> None:
    """Of every base, by the reference on the folder: the slots see the text up to there and no further."""
    weights = read_eagle3(tmp_path / "out", "peagle")
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
    shifted: list[float] = []  # where the feature is of one position before
    for (row, base), at in places[0].items():
        if at % 3:
            continue
        tokens = batch.tokens[row, : base + 2].tolist()
        features = fuse(weights, [batch.states[row, : base + 1, 0].float().numpy()])
        drafted = [
            draft(weights, embedding, tokens, given) for given in (features, np.roll(features, 1, axis=0))
        ]
        for depth in range(DEPTHS):
            if (row, base) in places[depth]:
                found = trained[depth][places[depth][row, base]]
                for kept, other in zip((errors, shifted), drafted, strict=True):
                    kept.append(float(np.abs(found - other[depth]).max()))
    assert len(errors) > 20
    assert max(errors) < 2e-4
    assert np.median(shifted) > 20 * max(errors)


def test_what_stands_for_hidden_states_is_learnt(run: Run, tmp_path: Path) -> None:
    fresh = Run(tmp_path / "data", tmp_path / "fresh", run.settings, threads=1).drafter
    before, after = (dict(one.named_parameters())[MASK_HIDDEN] for one in (fresh, run.drafter))
    assert (before != after).all()


def test_the_folder_has_all_that_engines_ask_for(run: Run, tmp_path: Path) -> None:
    weights = read_eagle3(tmp_path / "out", "peagle")
    config = weights.config
    assert (config.layers, config.draft_tokens, config.layer_ids) == (2, DEPTHS, (0,))
    assert (config.vocab_size, config.draft_vocab_size) == (265, 100)
    assert config.mask_token is not None
    assert run.teacher.counts[config.mask_token] == run.teacher.counts.min()
    assert torch.equal(torch.from_numpy(weights.token_ids), run.drafter.vocabulary)
    assert config.verifier.endswith("sharp.gguf")
    assert weights.tensors.keys() == config.shapes.keys()
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16, torch.int64, torch.bool}


def test_another_run_goes_on_from_it(run: Run, tmp_path: Path) -> None:
    settings = Settings(arch=run.settings.arch, dtype="float32", start_from=str(tmp_path / "out"))
    again = Run(tmp_path / "data", tmp_path / "again", settings, threads=1)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        if name not in ("d2t", "t2d"):
            torch.testing.assert_close(again.drafter.state_dict()[name], tensor.float())


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("peagle:layers=0", "layers is 0, allowed: 1 to 8"),
        ("peagle:depths=17", "depths is 17, allowed: 1 to 16"),
    ],
)
def test_bad_options_are_refused(make: Make, tmp_path: Path, arch: str, message: str) -> None:
    make(tmp_path / "data", tokens=60)
    with pytest.raises(ConfigError, match=message):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch=arch), threads=1)
