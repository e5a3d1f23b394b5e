"""Models whose weights torchao or bitsandbytes quantised; each test needs its library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, ModelFileError
from paceline.kernels.packing import dequantise
from paceline.sampling import SamplingParams
from paceline.targets.torch import TorchTarget
from paceline.targets.torch_folder import load_folder
from tests.torch.families import small
from tests.torch.test_architectures import engine, own_answer, prompts
from tests.torch.test_folder import folder as folder
from tests.unit.test_folder import byte_level

DRAFTER = "recycling:min_probability=1e-6"


def torchao(name: str = "Int8WeightOnlyConfig") -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(getattr(quantization, name)())


def four_bits() -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def eight_bits(threshold: float = 0.0) -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)


def quantised(how: Any, folder: Path) -> Any:
    small("llama", hidden_size=64, head_dim=16, intermediate_size=64).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=how).eval()


@pytest.mark.parametrize("how", [torchao, four_bits, eight_bits])
def test_greedy_answers_equal_those_of_transformers(how: Callable[[], Any], tmp_path: Path) -> None:
    of = quantised(how(), tmp_path)
    params = SamplingParams(temperature=0, max_tokens=24)
    done = engine(TorchTarget(of), DRAFTER, of).generate(prompts(), params)
    assert [list(one.token_ids) for one in done] == [own_answer(of, prompt) for prompt in prompts()]
    assert sum(one.stats.drafted for one in done) > 0


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_answers_do_not_depend_on_drafts(name: str, tmp_path: Path) -> None:
    target = TorchTarget(quantised(torchao(name), tmp_path), rows=8)
    drafters = {one: load(one, target.info) for one in (DRAFTER, "none")}
    of = Engine(target, drafters, drafter=DRAFTER)
    params = SamplingParams(temperature=1.1, seed=5, max_tokens=20)
    drafted, plain = (of.generate(prompts(), params, one) for one in drafters)
    assert sum(one.stats.drafted for one in drafted) > 0
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]


@pytest.mark.parametrize("how", [torchao, four_bits])
def test_the_bytes_of_the_weights_are_those_that_a_pass_reads(how: Callable[[], Any], tmp_path: Path) -> None:
    whole = TorchTarget(small("llama", hidden_size=64, head_dim=16, intermediate_size=64)).weight_bytes
    of = quantised(how(), tmp_path)
    numbers = sum(layer.in_features * layer.out_features for layer in of.modules() if _is_linear(of, layer))
    saved = 3 if how is torchao else 3.5  # of the four bytes of a number
    assert 0.97 * saved * numbers <= whole - TorchTarget(of).weight_bytes <= saved * numbers


def _is_linear(of: Any, layer: Any) -> bool:
    return isinstance(layer, torch.nn.Linear) and layer is not of.get_output_embeddings()


def test_a_quantised_head_is_shared_as_what_it_stands_for() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    of = small("llama")
    exact = of.get_output_embeddings().weight.detach().numpy().copy()
    quantization.quantize_(of, quantization.Int8WeightOnlyConfig())
    kind, packed, *shape = TorchTarget(of).head()
    np.testing.assert_allclose(dequantise(kind, *shape[:2], packed), exact, atol=np.abs(exact).max() / 100)


def test_a_head_of_packed_numbers_is_not_shared(tmp_path: Path) -> None:
    how = four_bits()
    how.llm_int8_skip_modules = ["nothing"]
    target = TorchTarget(quantised(how, tmp_path))
    with pytest.raises(ConfigError, match="leave it out with llm_int8_skip_modules"):
        target.head()


def test_a_model_whose_rows_are_mixed_is_refused(tmp_path: Path) -> None:
    of = quantised(eight_bits(6.0), tmp_path)
    with pytest.raises(ConfigError, match=r"llm_int8_threshold=6, with which .* load it with .*=0"):
        TorchTarget(of)


@pytest.mark.parametrize("how", [torchao, four_bits, eight_bits])
def test_a_folder_of_a_quantised_model_is_read(how: Callable[[], Any], folder: Path, tmp_path: Path) -> None:
    vocabulary = byte_level().get_vocab_size()
    plain = small("llama", hidden_size=64, head_dim=16, intermediate_size=64, vocab_size=vocabulary)
    plain.save_pretrained(tmp_path / "plain")
    asked = {"quantization_config": how()}
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **asked).save_pretrained(folder)
    target, _ = load_folder(folder)
    assert target.weight_bytes < 0.7 * TorchTarget(plain).weight_bytes


@pytest.mark.parametrize(
    ("how", "module"), [(torchao, "quantizer_torchao"), (four_bits, "quantizer_bnb_4bit")]
)
def test_a_library_that_is_missing_is_named(
    how: Callable[[], Any], module: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = how()
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).save_pretrained(folder)
    quantizer = importlib.import_module(f"transformers.quantizers.{module}")
    library = config.quant_method.value
    monkeypatch.setattr(quantizer, f"is_{library}_available", lambda: False)
    with pytest.raises(ModelFileError, match=f"{folder.name}: .*{library}"):
        load_folder(folder)
