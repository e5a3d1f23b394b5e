"""Training DSpark sees what drafting with it does, and its folder says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paceline.errors import ConfigError
from paceline.models.dflash_folder import HEAD
from paceline.models.dspark_folder import CONFIDENCE, MARKOV_IN, MARKOV_OUT, read_dspark
from paceline.train.batches import collate
from paceline.train.head_loss import head_divergence
from paceline.train.loop import Run
from paceline.train.losses import Laws
from paceline.train.settings import Settings
from paceline.trained.dflash_reference import inject
from paceline.trained.dspark_export import export_dspark
from paceline.trained.dspark_reference import follow
from tests.train.conftest import Make

DEPTHS = 3


def trained(make: Make, tmp_path: Path, file: Path, **more: object) -> Run:
    make(tmp_path / "data", file=file, tokens=200)
    arch = f"dspark:depths={DEPTHS},layers=2,draft_vocab=100,rank=32"
    settings = Settings(arch=arch, dtype="float32", batch_tokens=100, held_out=0.0, **more)  # type: ignore[arg-type]
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    return run


@pytest.fixture
def run(make: Make, tmp_path: Path, sharp: Path) -> Run:
    return trained(make, tmp_path, sharp, epochs=3)


def test_training_computes_what_drafting_does(run: Run, tmp_path: Path) -> None:
    """Of every base, by the reference on the folder: laws and confidences along the text."""
    weights = read_dspark(tmp_path / "out")
    run.drafter.load_state_dict({name: torch.from_numpy(part) for name, part in weights.tensors.items()})
    batch = collate(run.corpus, [0, 1, 2], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
        sure = [
            run.drafter.confidence_head["proj"](read).sigmoid().squeeze(1).numpy()
            for read in run.drafter(batch)
        ]
    embedding = run.teacher.embedding.float().numpy()
    places = [
        {tuple(base): at for at, base in enumerate(torch.nonzero(batch.bases(depth)).tolist())}
        for depth in range(DEPTHS)
    ]
    errors: list[float] = []
    others: list[float] = []  # where the token above is another
    for row, base in list(places[0])[::3]:
        text = batch.tokens[row, base + 1 : base + 1 + DEPTHS].tolist()
        block = embedding[[text[0], *[weights.config.mask_token] * (DEPTHS - 1)]]
        injected = inject(weights, [batch.states[row].float().numpy()[: base + 1, 0]])
        logits, confidences = follow(weights, weights.tensors[HEAD], block, injected, text)
        wrong, _ = follow(weights, weights.tensors[HEAD], block, injected, [*text[:1], *text[:-1]])
        for depth in range(DEPTHS):
            if (row, base) in places[depth]:
                at = places[depth][row, base]
                errors.append(float(np.abs(trained[depth][at] - logits[depth]).max()))
                errors.append(float(np.abs(sure[depth][at] - confidences[depth])))
                if depth and text[depth] != text[depth - 1]:
                    others.append(float(np.abs(trained[depth][at] - wrong[depth]).max()))
    assert len(errors) > 40
    assert max(errors) < 5e-5
    assert np.median(others) > 20 * max(errors)


def test_the_folder_has_all_that_engines_ask_for(run: Run, tmp_path: Path) -> None:
    weights = read_dspark(tmp_path / "out")
    config = weights.config
    assert (config.layers, config.block, config.depths, config.rank) == (2, DEPTHS, DEPTHS, 32)
    assert (config.from_anchor, config.confidence, config.confidence_tokens) == (True, True, True)
    assert (config.layer_ids, config.vocab_size, config.draft_vocab_size) == ((0,), 265, 100)
    assert torch.equal(torch.from_numpy(weights.token_ids), run.drafter.vocabulary)
    assert weights.tensors.keys() == config.shapes.keys() | {HEAD}
    assert all(np.abs(weights.tensors[name]).max() > 0 for name in (MARKOV_IN, MARKOV_OUT, CONFIDENCE))
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16, torch.int64, torch.bool}
    assert export_dspark(weights, "vllm", tmp_path / "exported", "org/target").difference == 0


def test_the_confidence_is_how_likely_what_is_drawn_is_accepted(
    make: Make, tmp_path: Path, sharp: Path
) -> None:
    """On the data it saw: high where the overlap of the laws is. And learning it changes nothing else."""
    run = trained(make, tmp_path, sharp, epochs=12, learning_rate=5e-3, ema=0.9, measure_every=1000)
    batch = collate(run.corpus, [0, 1, 2, 3], torch.device("cpu"))
    found: list[list[float]] = [[], []]
    laws = Laws(run.teacher, run.drafter.vocabulary, batch, DEPTHS, whole=False)
    with torch.no_grad():
        for depth, read in enumerate(run.drafter(batch)):
            _, overlap = head_divergence("kl", read, run.drafter.head, laws.laws, laws.rows(depth))
            sure = run.drafter.confidence_head["proj"](read).sigmoid().squeeze(1)
            for kept, own in zip(found, (sure, overlap), strict=True):
                kept += own.tolist()
    sure, overlap = np.array(found)
    assert np.abs(sure - overlap).mean() < 0.25, "it follows the laws, which go on getting closer"
    assert np.corrcoef(sure, overlap)[0, 1] > 0.6
    before = {name: weight.clone() for name, weight in run.drafter.named_parameters()}
    run.drafter.zero_grad()
    read = next(run.drafter(batch))
    run.drafter.aside(read, torch.full((len(read),), 0.5)).backward()
    moved = {name for name, weight in run.drafter.named_parameters() if weight.grad is not None}
    assert moved == {"confidence_head.proj.weight", "confidence_head.proj.bias"} < before.keys()


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("dspark:depths=17", "depths is 17, allowed: 1 to 16"),
        ("dspark:rank=20", "rank is 20, allowed: multiples of 32 up to 1024"),
        ("dspark:head=mine", "head is 'mine', allowed: own, target"),
    ],
)
def test_bad_options_are_refused(make: Make, tmp_path: Path, arch: str, message: str) -> None:
    make(tmp_path / "data", tokens=60)
    with pytest.raises(ConfigError, match=message):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch=arch), threads=1)
