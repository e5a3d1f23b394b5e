"""The command line on a tiny exact model instead of a file."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paceline.cli.main import run
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.models.metadata import Metadata
from paceline.models.registry import known
from paceline.models.tokenizer import Tokenizer
from paceline.models.vocabulary import read_tokenizer
from paceline.targets.table import TableTarget
from tests.gguf_writer import TEMPLATE


def letters(template: str = TEMPLATE) -> Tokenizer:
    """Control tokens, the letters, space, newline and full stop."""
    import numpy as np

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", "."]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 3, 3] + [1] * (len(tokens) - 3), "i4"),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": template,
    }
    return Tokenizer(read_tokenizer(Metadata(values)))


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PACELINE_CACHE", str(cache))
    return cache


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Makes every known model the table model; the list collects the engines that were made."""
    made: list[Engine] = []

    def from_pretrained(
        model: str, *, drafter: str, threads: int | None, context: int | None, **more: Any
    ) -> Engine:
        if model != "no-template":
            known(model)
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}, allowed: 1 to 256")
        tokenizer = letters("" if model == "no-template" else TEMPLATE)
        target = TableTarget(tokenizer.vocab_size, seed=1, max_positions=context or 512)
        drafters = {name: load(name, target.info) for name in dict.fromkeys((drafter, "none"))}
        made.append(Engine(target, drafters, drafter=drafter, tokenizer=tokenizer))
        return made[-1]

    monkeypatch.setattr(Engine, "from_pretrained", staticmethod(from_pretrained))
    return made


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def paceline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the program in this process: paceline("generate", "hello", stdin="...")."""

    def call(*arguments: str, stdin: str | bytes = "", terminal: bool = False) -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        kind = _Terminal if terminal else io.TextIOWrapper
        monkeypatch.setattr(sys, "stdin", kind(io.BytesIO(data), "utf-8"))
        code = run(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
