"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.models.registry import known
from tests.gguf_writer import byte_level_tables
from tests.gguf_writer import write as write_file

ONLY_IF_ASKED_FOR = {
    "network": "needs the network: run with -m network",
    "prove": "takes long: run with -m prove, or make prove",
}
MODELS = {"model": "smollm2-135m", "gemma": "gemma3-270m"}
"""The model that tests with a marker need."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-model",
        action="store_true",
        help="fail, instead of skipping tests, if the model is missing",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skipped = {
        name: reason for name, reason in ONLY_IF_ASKED_FOR.items() if name not in config.option.markexpr
    }
    for marker, name in MODELS.items():
        if not known(name).present:
            missing = f"{name} is not here: run `paceline models pull {name}`"
            if marker == "model" and config.getoption("--require-model"):
                raise pytest.UsageError(missing)
            skipped[marker] = missing
    for item in items:
        for name, reason in skipped.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


WriteGguf = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """A function that writes a tiny Llama file with the gguf package, an independent implementation.

    `metadata` overrides keys (None leaves one out), `tensors` overrides arrays or (array, type) pairs by
    tensor name (None leaves one out).
    """

    def write(
        metadata: dict[str, Any] | None = None,
        tensors: dict[str, Any] | None = None,
        name: str = "tiny.gguf",
    ) -> Path:
        import gguf

        kinds = gguf.GGMLQuantizationType
        values: dict[str, Any] = {
            "llama.block_count": 1,
            "llama.context_length": 64,
            "llama.embedding_length": 64,
            "llama.feed_forward_length": 96,
            "llama.attention.head_count": 2,
            "llama.attention.head_count_kv": 1,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 10000.0,
            **byte_level_tables(),
            **(metadata or {}),
        }
        rng = np.random.default_rng(0)
        vocabulary = len(values["tokenizer.ggml.tokens"] or [0])

        def matrix(rows: int, columns: int) -> np.ndarray[Any, Any]:
            return rng.normal(0, 0.1, (rows, columns)).astype(np.float32)

        weights: dict[str, Any] = {
            "token_embd.weight": (matrix(vocabulary, 64), kinds.Q8_0),
            "output_norm.weight": np.ones(64, np.float32),
            "blk.0.attn_norm.weight": np.ones(64, np.float32),
            "blk.0.attn_q.weight": (matrix(64, 64), kinds.Q4_1),
            "blk.0.attn_k.weight": (matrix(32, 64), kinds.Q4_0),
            "blk.0.attn_v.weight": (matrix(32, 64), kinds.F16),
            "blk.0.attn_output.weight": (matrix(64, 64), kinds.Q4_1),
            "blk.0.ffn_norm.weight": np.ones(64, np.float32),
            "blk.0.ffn_gate.weight": matrix(96, 64),
            "blk.0.ffn_up.weight": (matrix(96, 64), kinds.Q4_1),
            "blk.0.ffn_down.weight": (matrix(64, 96), kinds.Q4_1),
            **(tensors or {}),
        }
        path = tmp_path / name
        write_file(path, values, weights)
        return path

    return write
