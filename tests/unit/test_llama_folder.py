"""Folders of draft models: what is in them, what runs them, and what is wrong with one named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.core import NOTHING
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter, ModelFileError
from paceline.models.config import ModelConfig
from paceline.models.llama_folder import HEAD, LlamaWeights, described, read_llama, shapes
from paceline.models.safetensors_file import write_safetensors
from paceline.pretrained import load_model, offers
from paceline.sampling import SamplingParams
from paceline.targets.native import NativeTarget
from paceline.targets.weights import halves, interleave, pack_llama
from paceline.trained.draft_export import compare, export_draft
from paceline.trained.llama_reference import forward
from tests.draft_models import CONFIG, folder_of, random_model
from tests.native.models import draft_of

UNTIED = replace(CONFIG, tied=False, rope_scaling=2.0)


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_what_was_written_is_read(config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(config)
    again = read_llama(folder_of(model, tmp_path / "tiny draft"))
    assert again.config == config
    assert again.tensors.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    other = random_model(config, seed=1)
    assert compare(model, again) == 0 < compare(model, other)


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_the_kernels_compute_what_the_reference_does(config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(config)
    target = NativeTarget(pack_llama(tmp_path, model), threads=1)
    text = np.random.default_rng(1).integers(203, size=40).tolist()
    draft = draft_of([(0, text, 0, 39, NOTHING)])
    draft = replace(draft, scored=np.arange(39, dtype=np.int32))
    found = target.forward(draft, frozenset()).logits
    turned = LlamaWeights(replace(config, rope_scaling=4.0), model.tensors)
    error, control = (np.abs(found - forward(one, text[:39])).mean() for one in (model, turned))
    assert error < 0.05 * found.std(), "activations of 8 bits"
    assert control > 5 * error


def test_the_first_layers_are_a_model(tmp_path: Path) -> None:
    model = random_model()
    packed = pack_llama(tmp_path, model)
    text = np.random.default_rng(1).integers(203, size=40).tolist()
    draft = replace(draft_of([(0, text, 0, 39, NOTHING)]), scored=np.arange(39, dtype=np.int32))
    for layers in (1, 2, 3):
        found = NativeTarget(packed.first(layers), threads=1).forward(draft, frozenset()).logits
        errors = [np.abs(found - forward(model, text[:39], other)).mean() for other in (1, 2, 3)]
        assert errors.pop(layers - 1) < 0.2 * min(errors)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_sub_draft_drafts_and_one_that_is_not_there_is_refused(
    layers: int, tmp_path: Path, write_gguf: Any
) -> None:
    """Of a folder, and of a GGUF file."""
    file = write_gguf({"llama.context_length": 512})
    target, tokenizer = load_model(file, threads=1)
    folder = folder_of(random_model(replace(CONFIG, vocab_size=265)), tmp_path / "drafter")
    offered = offers(target, tokenizer)
    companion, _ = offered["load_model"](str(folder), layers=layers)
    assert companion.config.layers == layers
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    spec = f"draft:model={folder},layers={layers},min_probability=0"
    drafters = {name: load(name, target.info, **offered) for name in (spec, "none")}
    engine = Engine(target, drafters, drafter=spec, tokenizer=tokenizer)
    (drafted,), (plain,) = (engine.generate(["the cat"], params, name) for name in drafters)
    assert drafted.token_ids == plain.token_ids
    assert drafted.stats.drafted > 5
    for model, most in ((folder, 3), (file, 1)):
        with pytest.raises(ConfigError, match=f"layers is 4, and .* has 1 to {most}"):
            load(f"draft:model={model},layers=4", target.info, **offered)
    assert offered["load_model"](str(file), layers=1)[0].config.layers == 1
    with pytest.raises(ConfigError, match="draft:layers must be at least 0, got -1"):
        load(f"draft:model={folder},layers=-1", target.info, **offered)


def test_rows_of_queries_find_their_way_back() -> None:
    rows = np.random.default_rng(0).standard_normal((128, 6))
    np.testing.assert_array_equal(halves(interleave(rows, 32), 32), rows)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_plain_decodings(temperature: float, tmp_path: Path, write_gguf: Any) -> None:
    """With a draft model that knows nothing; `tests.train.test_draft` has one that knows something."""
    target, tokenizer = load_model(write_gguf({"llama.context_length": 512}), threads=1)
    folder = folder_of(random_model(replace(CONFIG, vocab_size=265)), tmp_path / "drafter")
    offered = offers(target, tokenizer)
    drafter = load(f"draft:model={folder},min_probability=0", target.info, **offered)
    plain = load("none", target.info)
    engine = Engine(target, {"d": drafter, "none": plain}, drafter="d", tokenizer=tokenizer)
    params = SamplingParams(temperature=temperature, seed=2, max_tokens=20, ignore_eos=True)
    drafted, wanted = (engine.generate(["the cat", "12"], params, name) for name in ("d", "none"))
    assert engine.load.draft_failures == {}
    assert sum(one.stats.drafted for one in drafted) > 20
    assert [one.token_ids for one in drafted] == [one.token_ids for one in wanted]


def test_one_for_another_target_is_refused(tmp_path: Path, write_gguf: Any) -> None:
    target, tokenizer = load_model(write_gguf(), threads=1)
    folder = folder_of(random_model(), tmp_path / "drafter")
    with pytest.raises(IncompatibleDrafter, match="trained for a target of 203 tokens, this one has 265"):
        load(f"draft:model={folder}", target.info, **offers(target, tokenizer))
    narrow = replace(CONFIG, vocab_size=265, ffn=90)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes(narrow).items()}
    odd = folder_of(LlamaWeights(narrow, zeros), tmp_path / "odd")
    with pytest.raises(ModelFileError, match="feed_forward_length is 90, the kernels need a multiple of 32"):
        load(f"draft:model={odd}", target.info, **offers(target, tokenizer))


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_it_is_exported_for_vllm(config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(config)
    written = export_draft(model, "vllm", tmp_path / "out", "org/model")
    assert written.difference <= 1e-5
    settings = json.loads(written.command.partition("--speculative-config ")[2].strip("'"))
    assert settings == {
        "method": "draft_model",
        "model": str(tmp_path / "out"),
        "num_speculative_tokens": 4,
    }
    assert written.config["architectures"] == ["LlamaForCausalLM"]
    with pytest.raises(ConfigError, match="draft models are written for vllm, not for sglang"):
        export_draft(model, "sglang", tmp_path / "s", "org/model")
    with pytest.raises(ConfigError, match="name it with --target"):
        export_draft(model, "vllm", tmp_path / "s", "")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r'config.json: model_type is "gpt2", expected "llama"'),
        ({"mlp_bias": True}, "mlp_bias is true, expected false"),
        ({"attention_bias": True}, "attention_bias is true, expected false"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a whole number above 0"),
        ({"num_hidden_layers": 4}, "tensor model.layers.3.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 2}, "has no tensor model.layers.2"),
        ({"vocab_size": 200}, r"embed_tokens.weight is float32 \[203, 64\], expected floats \[200, 64\]"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight is missing"),
        (
            {"rope_parameters": None, "rope_scaling": {"rope_type": "yarn"}},
            'rope_type is "yarn", expected "default", "linear"',
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = folder_of(random_model(), tmp_path / "a")
    (folder / "config.json").write_text(json.dumps({**described(CONFIG), **changes}))
    with pytest.raises(ModelFileError, match=message):
        read_llama(folder)


def test_frequencies_scaled_otherwise_are_refused(tmp_path: Path) -> None:
    folder = folder_of(random_model(), tmp_path / "a")
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
        "rope_theta": 10000.0,
    }
    (folder / "config.json").write_text(json.dumps({**described(CONFIG), "rope_parameters": scaling}))
    with pytest.raises(ModelFileError, match="scaled otherwise than linearly"):
        read_llama(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
        (lambda held: held.update(extra=np.ones(3, np.float32)), "has no tensor extra"),
        (
            lambda held: held.update({"model.norm.weight": np.full(64, np.nan, np.float32)}),
            "model.norm.weight holds values that are not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    folder, held = folder_of(random_model(), tmp_path / "a"), dict(random_model().tensors)
    change(held)
    write_safetensors(folder / "model.safetensors", held)
    with pytest.raises(ModelFileError, match=message):
        read_llama(folder)


def test_a_tied_head_that_is_written_all_the_same_is_let_be(tmp_path: Path) -> None:
    folder, held = folder_of(random_model(), tmp_path / "a"), dict(random_model().tensors)
    write_safetensors(folder / "model.safetensors", {**held, HEAD: held["model.embed_tokens.weight"]})
    assert HEAD not in read_llama(folder).tensors


def test_a_folder_that_is_none_is_refused(tmp_path: Path, write_gguf: Any) -> None:
    target, tokenizer = load_model(write_gguf(), threads=1)
    folder = tmp_path / "a"
    folder.mkdir()
    with pytest.raises(ModelFileError, match=r"config.json cannot be read: No such file"):
        load(f"draft:model={folder}", target.info, **offers(target, tokenizer))
    (folder / "config.json").write_text(json.dumps(described(CONFIG)))
    with pytest.raises(ModelFileError, match=r"there is no model.safetensors"):
        read_llama(folder)
    folder_of(random_model(), folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"is damaged: .*the file is cut off"):
        read_llama(folder)
