"""Training a draft model sees what drafting with it does, and its folder says what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.models.llama_folder import read_llama
from paceline.pretrained import load_model, offers
from paceline.sampling import SamplingParams
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.trained.llama_reference import forward
from tests.gguf_writer import byte_level_tables
from tests.train.conftest import Make, answers_of
from tests.train.test_loop import accepted, train


def run_of(arch: str, data: Path, out: Path) -> Run:
    settings = Settings(arch=arch, dtype="float32", batch_tokens=200, epochs=2, held_out=0.0)
    return Run(data, out, settings, threads=1)


@pytest.mark.parametrize("hidden", [0, 96])
def test_the_folder_gives_the_logits_of_training(
    hidden: int, make: Make, tmp_path: Path, sharp: Path
) -> None:
    """With the target's width and its head apart from the embeddings, and with another width."""
    make(tmp_path / "data", file=sharp, tokens=200)
    run = run_of(f"draft:layers=2,exits=1,depths=3,hidden={hidden}", tmp_path / "data", tmp_path / "out")
    run.train(lambda step, log: None)
    weights = read_llama(tmp_path / "out")
    config = weights.config
    assert (config.layers, config.vocab_size, config.tied) == (2, 265, bool(hidden))
    assert (config.hidden, config.heads, config.kv_heads) == ((96, 3, 1) if hidden else (64, 2, 1))
    run.drafter.load_state_dict({name: torch.from_numpy(t) for name, t in weights.tensors.items()})
    batch = collate(run.corpus, [0, 1], torch.device("cpu"))
    with torch.no_grad():
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
        learnt = [read.numpy() for read in run.drafter.study(batch)]
        first = next(run.drafter(batch)).numpy()
    np.testing.assert_array_equal(learnt[-1], first)
    texts = [forward(weights, batch.tokens[row].tolist()) for row in range(2)]
    for depth, logits in enumerate(trained):
        assert len(logits) > 5
        bases = torch.nonzero(batch.bases(depth)).tolist()
        for (row, base), found in zip(bases, logits, strict=True):
            np.testing.assert_allclose(found, texts[row][base + 1 + depth], rtol=1e-3, atol=2e-4)
    shorter = [forward(weights, batch.tokens[row].tolist(), 1) for row in range(2)]
    found = learnt[0] @ run.drafter.head.detach().numpy().T
    wanted = [shorter[row][base + 1] for row, base in torch.nonzero(batch.bases(0)).tolist()]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-4)


def test_sub_drafts_learn_too(make: Make, tmp_path: Path, walking: Path) -> None:
    """The first layer of two overfits a tiny target as both do."""
    manifest = make(tmp_path / "data", file=walking, tokens=150, max_tokens=16)
    settings: dict[str, Any] = {"batch_tokens": 1000, "ema": 0.9, "learning_rate": 2e-2}
    rare = {"measure_every": 1000, "checkpoint_every": 1000}
    arch = "draft:layers=2,hidden=64,exits=1,depths=3"
    card = train(tmp_path / "data", tmp_path / "out", arch=arch, epochs=150, **settings, **rare)
    assert card["estimate"]["tau_greedy"] > 3.6, "of 4 at most"
    answers = answers_of(tmp_path / "data", manifest)
    for layers in (1, 2):
        spec = f"draft:model={tmp_path / 'out'},layers={layers},widths=1x1x1,min_probability=0"
        assert accepted(walking, answers, spec) > 0.9


def test_the_targets_own_layers_are_the_target(make: Make, tmp_path: Path, deep: Path) -> None:
    """All of them say what it says before anything was learnt; some of them do not."""
    make(tmp_path / "data", file=deep, tokens=200)
    found = {}
    for layers in (2, 3):
        arch = f"draft:layers={layers},layers_of={deep}"
        run = run_of(arch, tmp_path / "data", tmp_path / str(layers))
        found[layers] = run.measure(run.drafter)
    assert min(found[3]["agreement"]) > 0.95
    assert min(found[3]["overlap"]) > 0.95
    assert found[2]["overlap"][0] < 0.9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_plain_decodings_with_drafts_kept_and_not(
    temperature: float, make: Make, tmp_path: Path, sharp: Path
) -> None:
    make(tmp_path / "data", file=sharp, tokens=100)
    run_of(f"draft:layers=1,layers_of={sharp}", tmp_path / "data", tmp_path / "out").train(
        lambda step, log: None
    )
    path = tmp_path / "out" / "model.safetensors"
    held = load_file(path)
    torch.manual_seed(0)
    blurred = {name: part + part.std() * torch.randn_like(part) / 3 for name, part in held.items()}
    save_file(blurred, path)
    target, tokenizer = load_model(sharp, threads=1)
    drafter = load(
        f"draft:model={tmp_path / 'out'},min_probability=0", target.info, **offers(target, tokenizer)
    )
    drafters = {"d": drafter, "none": load("none", target.info)}
    engine = Engine(target, drafters, drafter="d", tokenizer=tokenizer)
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=40, ignore_eos=True)
    drafted, plain = (engine.generate(["the cat", "why?", "12"], params, name) for name in drafters)
    assert engine.load.draft_failures == {}
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    kept, made = (sum(getattr(one.stats, name) for one in drafted) for name in ("accepted", "drafted"))
    assert 10 < kept < made - 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("layers=0", "layers is 0, allowed: 1 to 64"),
        ("depths=17", "depths is 17, allowed: 1 to 16"),
        ("exits=1x5", "exits is '1x5', allowed: numbers from 1 to 4 with x between"),
        ("exits=0", "exits is '0', allowed: numbers from 1 to 4"),
        ("hidden=33", "hidden is 33, allowed: multiples of 32"),
        ("hidden=64,layers_of={file}", "hidden is 64, but the layers of .* have a width of their own"),
        ("layers=3,layers_of={file}", "layers is 3, and .* has 1"),
        ("layers=1,layers_of={other}", "layers_of: .*other.gguf has 266 tokens, the target 265"),
    ],
)
def test_bad_options_are_refused(
    options: str, message: str, make: Make, tmp_path: Path, sharp: Path, write_gguf: Any
) -> None:
    make(tmp_path / "data", file=sharp, tokens=100)
    if "other" in options:
        tables = byte_level_tables()
        tables["tokenizer.ggml.tokens"] = [*tables["tokenizer.ggml.tokens"], "<extra>"]
        tables["tokenizer.ggml.token_type"] = [*tables["tokenizer.ggml.token_type"], 1]
        write_gguf(tables, name="other.gguf")
    arch = "draft:" + options.format(file=sharp, other=tmp_path / "other.gguf")
    with pytest.raises(ConfigError, match=message):
        run_of(arch, tmp_path / "data", tmp_path / "out")
