"""Models from folders: `Engine.from_pretrained` on safetensors, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from paceline.cli.main import run
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, ModelFileError
from paceline.pretrained import load_model, offers
from paceline.sampling import SamplingParams
from tests.torch.families import small
from tests.unit.test_folder import TEMPLATE, byte_level


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    made = small("llama", torch.bfloat16, vocab_size=len(tokenizer))
    made.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_answers_as_transformers_does(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    engine = Engine.from_pretrained(folder, context=100)
    messages = [{"role": "user", "content": "It is known."}]
    own = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = own.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert engine.tokenizer is not None
    assert engine.tokenizer.apply_chat_template(messages) == ids
    (done,) = engine.generate(messages, SamplingParams(temperature=0, max_tokens=12))
    model = engine.target.model  # type: ignore[attr-defined]
    assert model.dtype is torch.bfloat16
    whole = torch.tensor([ids])
    out = model.generate(whole, attention_mask=torch.ones_like(whole), do_sample=False, max_new_tokens=12)
    assert list(done.token_ids) == out[0, len(ids) :].tolist()
    assert done.text == own.decode(out[0, len(ids) :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("rows", "promise"), [((), "bit-exact but for ties"), (("--rows", "8"), "bit-exact")]
)
def test_the_command_line_passes_rows_on(
    rows: tuple[str, ...], promise: str, folder: Path, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    asked = ("--model", str(folder), "--drafter", "ngram", "--policy", "fixed", "--max-tokens", "4", "--json")
    assert run(("generate", *asked, *rows, "It is known.")) == 0
    assert json.loads(capsys.readouterr().out)["promise"] == promise


def test_damaged_and_incomplete_folders_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelFileError, match=folder.name):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelFileError, match=folder.name):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelFileError, match=folder.name):
        load_model(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"threads": 0}, "threads is 0"), ({"rows": 0}, "rows is 0"), ({"context": 3}, "context")],
)
def test_options_out_of_range_are_refused(options: dict[str, int], says: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_model(folder, **options)


def test_a_draft_model_has_a_device_of_its_own(folder: Path) -> None:
    target, tokenizer = load_model(folder)
    loaded = offers(target, tokenizer)["load_model"]
    drafting, _ = loaded(folder, device="cpu")
    assert "cpu" in drafting.isa
    with pytest.raises(ConfigError, match="there is no device 'cuda:77' here; there are cpu"):
        loaded(folder, device="cuda:77")
    with pytest.raises(
        ConfigError, match="runs on PyTorch, whose threads are the whole process's; threads=2"
    ):
        loaded(folder, threads=2)


def test_a_draft_model_drafts_while_the_target_verifies(folder: Path) -> None:
    target, tokenizer = load_model(folder, rows=8)
    drafter = f"draft:model={folder},min_probability=0,device=cpu,ahead=2"
    drafters = {name: load(name, target.info, **offers(target, tokenizer)) for name in (drafter, "none")}
    engine = Engine(target, drafters, drafter=drafter, tokenizer=tokenizer)
    params = SamplingParams(temperature=1, seed=3, max_tokens=24, ignore_eos=True)
    drafted, plain = (engine.generate(["It is known.", "All is"], params, name) for name in drafters)
    assert engine.load.draft_failures == {}
    assert sum(one.stats.accepted for one in drafted) > 20
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]


def test_a_name_of_the_hub_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, **_: object) -> str:
        asked.append(name)
        if name != "org/model":
            raise OSError("no such repository")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    target, _ = load_model("org/model")
    assert target.info.vocab_size > 256
    with pytest.raises(ModelFileError, match=r"org/missing cannot be fetched: no such repository"):
        load_model("org/missing")
    assert asked == ["org/model", "org/missing"]
