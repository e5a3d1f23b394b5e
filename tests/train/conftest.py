"""A tiny random target and prompts for it. What trains needs PyTorch; those tests are left out without."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.models.cache import sha256_of
from paceline.train import answers as data
from paceline.train.dataset import Manifest
from paceline.train.speaker import Speaker
from tests import draft_models

if find_spec("torch") is None or find_spec("safetensors") is None:
    collect_ignore = [
        "test_dflash.py",
        "test_dflash2.py",
        "test_draft.py",
        "test_dspark.py",
        "test_eagle3.py",
        "test_exit.py",
        "test_fast_paths.py",
        "test_loop.py",
        "test_lora.py",
        "test_medusa.py",
        "test_mixed_data.py",
        "test_pads.py",
        "test_mtp.py",
        "test_peagle.py",
        "test_processes.py",
        "test_redrafter.py",
        "test_run_command.py",
    ]
else:
    import torch

    torch.set_num_threads(1)  # for models as small as these, more only wait for each other

WORDS = ("the cat", "a dog in the rain", "12", "why?", "in", "the the the", "no", "birds")


@pytest.fixture
def model(write_gguf: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Llama of one layer, whose answers are not all as long as they may be."""
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))
    return Path(write_gguf({"llama.context_length": 512}))


@pytest.fixture
def sharp(write_gguf: Any) -> Path:
    """Another, whose laws are far from uniform. With a head of its own, or it would say each token again."""
    import gguf

    rng = np.random.default_rng(1)
    tensors = {
        name: (rng.normal(0, 0.4, (265, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        for name in ("token_embd.weight", "output.weight")
    }
    return Path(write_gguf({"llama.context_length": 512}, tensors, name="sharp.gguf"))


@pytest.fixture
def two_layers(write_gguf: Any) -> Path:
    """A target with hidden states that are neither its embeddings nor its last."""
    rng = np.random.default_rng(0)
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    shapes |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
    second = {f"blk.1.{name}.weight": rng.normal(0, 0.1, shape) for name, shape in shapes.items()}
    second |= {f"blk.1.{name}_norm.weight": np.ones(64) for name in ("attn", "ffn")}
    tensors = {name: tensor.astype(np.float32) for name, tensor in second.items()}
    return Path(write_gguf({"llama.context_length": 512, "llama.block_count": 2}, tensors))


@pytest.fixture
def walking(write_gguf: Any) -> Path:
    """Another, as sharp, that says after each token the next one of its vocabulary: a drafter that says again
    what the target said is wrong everywhere."""
    import gguf

    embedding = np.random.default_rng(1).normal(0, 0.4, (265, 64)).astype(np.float32)
    tensors = {
        "token_embd.weight": (embedding, gguf.GGMLQuantizationType.Q8_0),
        "output.weight": (np.roll(embedding, 1, axis=0), gguf.GGMLQuantizationType.Q8_0),
    }
    return Path(write_gguf({"llama.context_length": 512}, tensors, name="walking.gguf"))


@pytest.fixture
def deep(write_gguf: Any) -> Path:
    """Another, of three layers, each of which has its say."""
    rng = np.random.default_rng(5)

    def matrix(rows: int, columns: int) -> Any:
        return rng.normal(0, 0.2, (rows, columns)).astype(np.float32)

    shapes = {
        "attn_q": (64, 64),
        "attn_k": (32, 64),
        "attn_v": (32, 64),
        "attn_output": (64, 64),
        "ffn_gate": (96, 64),
        "ffn_up": (96, 64),
        "ffn_down": (64, 96),
    }
    tensors = {"token_embd.weight": matrix(265, 64)}
    for at in ("blk.0.", "blk.1.", "blk.2."):
        tensors |= {f"{at}{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        tensors |= {f"{at}{name}.weight": np.ones(64, np.float32) for name in ("attn_norm", "ffn_norm")}
    return Path(write_gguf({"llama.context_length": 512, "llama.block_count": 3}, tensors, name="deep.gguf"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS))
    return path


@pytest.fixture
def draft_model(tmp_path: Path) -> Path:
    """A draft model with random weights for `model`, the folder of one."""
    config = replace(draft_models.CONFIG, layers=1, vocab_size=265)
    return draft_models.folder_of(draft_models.random_model(config), tmp_path / "draft")


Make = Callable[..., Manifest]


@pytest.fixture
def make(model: Path, prompts: Path) -> Make:
    """Makes a data set: make(folder, batch=..., states=..., taps=..., advance=..., and the recipe's)."""

    def call(
        folder: Path,
        *,
        batch: int = 4,
        states: bool = True,
        tokens: int | None = None,
        bytes: int | None = None,
        advance: Callable[[data.Answer], object] = lambda answer: None,
        file: Path = model,
        taps: tuple[str, ...] = ("hidden.0", "hidden.1"),
        draft_model: Path | None = None,
        **more: Any,
    ) -> Manifest:
        recipe: dict[str, Any] = {
            "answers": 2,
            "temperatures": (0.0, 1.0),
            "max_tokens": 24,
            "max_prompt_tokens": 60,
            "shard_tokens": 200,
            "seed": 5,
        }
        source = data.Source(str(file), taps, batch=batch, longest=84, threads=1)
        speaker = None
        if draft_model is not None:
            speaker = Speaker(draft_model, source.target, source.tokenizer, batch=batch, longest=84)
            recipe["answered_by"] = speaker.sha256
        return data.make(
            folder,
            source,
            prompts,
            data.Recipe(prompts_sha256=sha256_of(prompts), **(recipe | more)),
            states=states,
            limits=data.Limits(tokens=tokens, bytes=bytes),
            advance=advance,
            speaker=speaker,
        )

    return call


def answers_of(folder: Path, manifest: Manifest) -> list[data.Answer]:
    """All answers of a data set."""
    found = []
    for place in range(len(manifest.shards)):
        shard = manifest.read_shard(folder, place)
        ends = np.cumsum(shard["lengths"])
        for end, length, prompt in zip(ends, shard["lengths"], shard["prompts"], strict=True):
            states = shard["states"][end - length : end - 1] if "states" in shard else None
            found.append(data.Answer(shard["tokens"][end - length : end], int(prompt), states))
    return found
