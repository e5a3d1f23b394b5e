"""Writing small model files with the gguf package, an independent implementation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.models.tokenizer import byte_characters

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


def write(path: Path, values: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """A file with these metadata and tensors.

    `values` needs no "general.architecture" for a Llama; None leaves a key or tensor out. A weight is an
    array, an (array, type) to quantise, or (blocks, name of their type).
    """
    import gguf

    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, values.get("general.architecture", "llama"))
    for key, value in values.items():
        if value is None or key == "general.architecture":
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
