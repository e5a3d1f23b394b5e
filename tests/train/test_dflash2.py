"""Training DFlash 2 sees what drafting with it does, and its folder goes to other engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paceline.errors import ConfigError
from paceline.models.dflash2_folder import BELOW, read_dflash2
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.trained.dflash2_export import export_dflash2
from paceline.trained.dflash2_reference import follow
from paceline.trained.dflash_reference import inject
from tests.train.conftest import Make

DEPTHS = 3
ARCH = f"dflash2:depths={DEPTHS},layers=2,rank=6,candidates=20,kernel=3,group=4"


@pytest.fixture
def run(make: Make, tmp_path: Path, sharp: Path) -> Run:
    make(tmp_path / "data", file=sharp, tokens=200)
    settings = Settings(arch=ARCH, dtype="float32", batch_tokens=100, epochs=3, held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    return run


def test_training_computes_what_drafting_does(run: Run, tmp_path: Path) -> None:
    """Of every base, by the reference on the folder, among the candidates; behind the text's own tokens."""
    weights = read_dflash2(tmp_path / "out")
    run.drafter.load_state_dict({name: torch.from_numpy(part) for name, part in weights.tensors.items()})
    batch = collate(run.corpus, [0, 1, 2], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
        read = list(run.drafter.study(batch))
        unary = [torch.nn.functional.linear(part, run.drafter.head).numpy() for part in read[DEPTHS:]]
    embedding, head = run.teacher.embedding.float().numpy(), run.teacher.head.float().numpy()
    places = [
        {tuple(base): at for at, base in enumerate(torch.nonzero(batch.bases(depth)).tolist())}
        for depth in range(DEPTHS)
    ]
    errors, added = [], []
    for (row, base), at in places[0].items():
        if at % 3:
            continue
        states = batch.states[row].float().numpy()
        text = batch.tokens[row, base + 1 : base + 1 + DEPTHS].tolist()
        block = [text[0], *[weights.config.mask_token] * DEPTHS]
        drafted = follow(weights, head, embedding[block], inject(weights, [states[: base + 1, 0]]), text)
        for depth, logits in enumerate(drafted):
            if (row, base) in places[depth]:
                place = places[depth][row, base]
                chosen = np.isfinite(logits)
                assert chosen.sum() == 20
                assert set(np.flatnonzero(chosen)) == set(np.argsort(-unary[depth][place])[:20])
                errors.append(np.abs(trained[depth][place] - logits)[chosen].max())
                added.append(np.abs(trained[depth][place] - unary[depth][place]).max())
    assert len(errors) > 20
    assert max(errors) < 5e-5
    assert np.median(added) > 20 * max(errors), "the selector has learnt something"


def test_the_folder_says_what_it_is(run: Run, tmp_path: Path) -> None:
    weights = read_dflash2(tmp_path / "out")
    config = weights.config
    assert (config.layers, config.block, config.depths) == (2, DEPTHS + 1, DEPTHS)
    assert (config.rank, config.candidates, config.kernel, config.group) == (6, 20, 3, 4)
    assert config.draft_vocab_size == config.vocab_size == 265
    assert config.layer_ids == (0,)
    assert run.teacher.counts[config.mask_token] == run.teacher.counts.min()
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert held.keys() == config.shapes.keys()
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    for name in ("layers.0.mlp_conv.base_kernel", "layers.1.attention_conv.kernel_projection.weight", BELOW):
        fresh = dict(run._fresh().named_parameters())[name]
        assert np.abs(weights.tensors[name] - fresh.detach().numpy()).max() > 1e-4, name


def test_training_goes_on_from_a_folder_that_other_engines_load(
    make: Make, tmp_path: Path, two_layers: Path
) -> None:
    """Whose form counts the layers, so that its ids are one less; the target's head does not change."""
    make(tmp_path / "data", file=two_layers, tokens=200, taps=("hidden.1",))
    settings = Settings(arch=ARCH, dtype="float32", epochs=2, held_out=0.0)
    run = Run(tmp_path / "data", tmp_path / "out", settings, threads=1)
    run.train(lambda step, log: None)
    weights = read_dflash2(tmp_path / "out")
    for to in ("vllm", "sglang"):
        written = export_dflash2(weights, to, tmp_path / to, "org/target")
        assert written.difference == 0
        assert (weights.config.layer_ids, written.config["dflash_config"]["target_layer_ids"]) == ((1,), [0])
    again = Run(
        tmp_path / "data", tmp_path / "more", replace(settings, start_from=str(tmp_path / "vllm")), threads=1
    )
    for name, weight in again.drafter.named_parameters():
        assert torch.equal(weight, torch.from_numpy(weights.tensors[name])), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("layers=0", "layers is 0, allowed: 1 to 8"),
        ("rank=0", "rank is 0, allowed: 1 to 1024"),
        ("candidates=300", "candidates is 300, allowed: 1 to 256"),
        ("kernel=7", "kernel is 7, allowed: 1 to 6"),
        ("group=5", "group is 5, allowed: divisors of the target's 64"),
    ],
)
def test_bad_options_are_refused(make: Make, tmp_path: Path, options: str, message: str) -> None:
    make(tmp_path / "data", tokens=60)
    with pytest.raises(ConfigError, match=message):
        Run(tmp_path / "data", tmp_path / "out", Settings(arch=f"dflash2:{options}"), threads=1)
