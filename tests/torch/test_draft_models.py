"""Trained draft models are what transformers makes of their folders, and draft beside a PyTorch target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter, ModelFileError
from paceline.models.config import ModelConfig
from paceline.models.vocabulary import fingerprint
from paceline.pretrained import load_model, offers
from paceline.sampling import SamplingParams
from paceline.targets.native import NativeTarget
from paceline.targets.torch import TorchTarget
from paceline.trained.llama_reference import forward
from tests.draft_models import CONFIG, folder_of, random_model
from tests.torch.test_folder import folder as folder


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, tied=False, rope_scaling=2.0)])
def test_the_folder_is_the_same_model_to_transformers(config: ModelConfig, tmp_path: Path) -> None:
    weights = random_model(config)
    made = AutoModelForCausalLM.from_pretrained(folder_of(weights, tmp_path / "a"), dtype=torch.float32)
    text = np.random.default_rng(0).integers(203, size=30).tolist()
    with torch.no_grad():
        found = made(torch.tensor([text])).logits[0].numpy()
    np.testing.assert_allclose(found, forward(weights, text), rtol=1e-3, atol=1e-4)


def test_its_first_layers_are_a_model_there_too(folder: Path, tmp_path: Path) -> None:
    target, tokenizer = load_model(folder)
    weights = random_model(replace(CONFIG, vocab_size=target.info.vocab_size))
    own = folder_of(weights, tmp_path / "drafter")
    loaded = offers(target, tokenizer)["load_model"]
    text = np.random.default_rng(0).integers(50, size=20).tolist()
    for layers in (1, 2):
        made = loaded(str(own), layers=layers)[0].model.to(torch.float32)
        with torch.no_grad():
            found = made(torch.tensor([text])).logits[0].numpy()
        wanted = forward(weights, text, layers)
        assert np.abs(found - wanted).max() < 0.1 * wanted.std()
    with pytest.raises(ConfigError, match="layers is 4, allowed: 1 to 3"):
        loaded(str(own), layers=4)
    with pytest.raises(ConfigError, match="is run whole; layers=2 is for GGUF files and draft models"):
        loaded(str(folder), layers=2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_drafts_beside_a_pytorch_target(temperature: float, folder: Path, tmp_path: Path) -> None:
    target, tokenizer = load_model(folder, rows=8)
    vocab_size = target.info.vocab_size
    own = folder_of(random_model(replace(CONFIG, vocab_size=vocab_size)), tmp_path / "drafter")
    offered = offers(target, tokenizer)
    companion, tokens = offered["load_model"](str(own))
    assert isinstance(companion, TorchTarget)
    assert tokens is tokenizer
    assert companion.info.vocabulary == ""
    assert target.info.vocabulary == fingerprint(tokenizer.to_json())
    drafter = load(f"draft:model={own},min_probability=0", target.info, **offered)
    drafters = {"d": drafter, "none": load("none", target.info)}
    engine = Engine(target, drafters, drafter="d", tokenizer=tokenizer)
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=24, ignore_eos=True)
    drafted, plain = (engine.generate(["It is known.", "All is"], params, name) for name in drafters)
    assert engine.load.draft_failures == {}
    assert sum(one.stats.drafted for one in drafted) > 20
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]


def test_a_device_puts_it_on_pytorch_beside_a_native_target(write_gguf: object, tmp_path: Path) -> None:
    target, tokenizer = load_model(write_gguf(), threads=1)  # type: ignore[operator]
    own = folder_of(random_model(replace(CONFIG, vocab_size=265)), tmp_path / "drafter")
    loaded = offers(target, tokenizer)["load_model"]
    assert isinstance(loaded(str(own))[0], NativeTarget)
    assert isinstance(loaded(str(own), device="cpu")[0], TorchTarget)


def test_what_does_not_fit_is_refused_there_too(folder: Path, tmp_path: Path) -> None:
    target, tokenizer = load_model(folder)
    own = folder_of(random_model(), tmp_path / "drafter")
    loaded = offers(target, tokenizer)["load_model"]
    with pytest.raises(IncompatibleDrafter, match="trained for a target of 203 tokens, this one has"):
        loaded(str(own))
    (own / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"model\.safetensors cannot be read"):
        loaded(str(own))
