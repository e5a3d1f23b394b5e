"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.models.registry import known
from paceline.models.tokenizer import byte_characters

ONLY_IF_ASKED_FOR = {
    "network": "needs the network: run with -m network",
    "prove": "takes long: run with -m prove, or make prove",
}


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
    model = known("smollm2-135m")
    if not model.present:
        missing = f"{model.name} is not here: run `paceline models pull {model.name}`"
        if config.getoption("--require-model"):
            raise pytest.UsageError(missing)
        skipped["model"] = missing
    for item in items:
        for name, reason in skipped.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


WriteGguf = Callable[..., Path]

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level_tables() -> dict[str, Any]:
    """A byte-level vocabulary of 3 control tokens, all bytes and a few merges."""
    merges = ["t h", "th e", "Ġ the", "i n", "Ã ©", "1 2"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_characters()]
    tokens += [merge.replace(" ", "") for merge in merges]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


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
        writer = gguf.GGUFWriter(path, values.pop("general.architecture", "llama"))
        for key, value in values.items():
            if value is None:
                continue
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        for tensor, value in weights.items():
            if value is None:
                continue
            if not isinstance(value, tuple):
                writer.add_tensor(tensor, value)
            elif isinstance(value[1], str):
                writer.add_tensor(tensor, value[0], raw_dtype=kinds[value[1]])
            else:
                writer.add_tensor(tensor, gguf.quants.quantize(*value), raw_dtype=value[1])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
