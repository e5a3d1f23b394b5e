"""Reading GGUF files: whole ones exactly, damaged ones with one clear error."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.errors import ModelFileError
from paceline.models.config import ModelConfig, read_config
from paceline.models.gguf_file import read_gguf
from paceline.models.metadata import Metadata
from paceline.models.tokenizer import Tokenizer

# "write_gguf" comes from tests/conftest.py


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_a_whole_file_is_read_as_it_was_written(write_gguf: Any) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_gguf()
    checkpoint = read_gguf(path)
    assert checkpoint.config == ModelConfig(
        architecture="llama", name="llama", hidden=64, layers=1, heads=2, kv_heads=1, head_dim=32, ffn=96,
        vocab_size=265, context=64, rope_theta=10000.0, rope_interleaved=True,
        norm_eps=pytest.approx(1e-5), tied=True, query_scale=32**-0.5,
    )  # fmt: skip
    theirs = gguf.GGUFReader(path)
    assert [tensor.name for tensor in theirs.tensors] == list(checkpoint.tensors)
    for tensor in theirs.tensors:
        ours = checkpoint.tensors[tensor.name]
        assert ours.type == tensor.tensor_type.name
        assert ours.shape == tuple(int(size) for size in tensor.shape[::-1])
        assert not ours.data.flags.writeable
        np.testing.assert_array_equal(ours.data, tensor.data)
    tokens = theirs.fields["tokenizer.ggml.tokens"].contents()
    assert checkpoint.tokenizer["tokens"] == tokens


def test_config_and_tokenizer_survive_json(write_gguf: Any) -> None:
    checkpoint = read_gguf(write_gguf())
    assert ModelConfig.from_json(checkpoint.config.to_json()) == checkpoint.config
    assert json.loads(json.dumps(checkpoint.tokenizer)) == checkpoint.tokenizer


def test_an_output_matrix_of_its_own_makes_the_model_untied(write_gguf: Any) -> None:
    checkpoint = read_gguf(write_gguf(tensors={"output.weight": np.ones((265, 64), np.float32)}))
    assert not checkpoint.config.tied


def test_what_an_architecture_adds_is_read(write_gguf: Any) -> None:
    def read(architecture: str, **metadata: Any) -> ModelConfig:
        own = {f"{architecture}.{key.replace('__', '.')}": value for key, value in metadata.items()}
        return read_config(Metadata({**sizes(architecture), **own}))

    def sizes(architecture: str) -> dict[str, Any]:
        tables = {"general.architecture": architecture, "tokenizer.ggml.tokens": ["a"] * 9}
        numbers = {"embedding_length": 96, "attention.head_count": 4, "attention.key_length": 64}
        numbers |= {"context_length": 64, "block_count": 8, "feed_forward_length": 96}
        numbers |= {"attention.layer_norm_rms_epsilon": 1e-6}  # type: ignore[dict-item]
        return tables | {f"{architecture}.{key}": value for key, value in numbers.items()}

    plain = read("llama")
    assert (plain.bias, plain.head_norms, plain.post_norms, plain.gelu) == (False,) * 4
    assert (plain.windows, plain.embedding_scale, plain.query_scale) == ([0] * 8, 1.0, 0.125)
    assert read("llama", attention__sliding_window=8).windows == [8] * 8
    assert read("llama", attention__sliding_window=1 << 31).windows == [64] * 8
    assert read("llama", rope__scaling__factor=4.0).rope_scaling == 4.0
    assert read("llama", rope__scaling__type="none", rope__scaling__factor=4.0).rope_scaling == 1.0
    assert (read("qwen2").bias, read("qwen2").rope_interleaved) == (True, False)
    assert (read("qwen3").bias, read("qwen3").head_norms) == (False, True)
    gemma = read("gemma3", attention__sliding_window=8)
    assert (gemma.post_norms, gemma.head_norms, gemma.gelu) == (True,) * 3
    assert gemma.windows == [8, 8, 8, 8, 8, 0, 8, 8]
    assert (gemma.embedding_scale, gemma.window_rope_theta, gemma.query_scale) == (96**0.5, 10000.0, 0.125)
    assert read("gemma3").windows == [0] * 8
    assert read("gemma3", block_count=62).query_scale == (96 / 4) ** -0.5
    for config in (plain, gemma):
        assert ModelConfig.from_json(config.to_json()) == config


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.gguf")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "empty.gguf").touch()
    assert "0 bytes" in refusal(tmp_path / "empty.gguf")
    (tmp_path / "text.gguf").write_text("this is not a model file at all")
    assert "expected b'GGUF'" in refusal(tmp_path / "text.gguf")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "gpt5"}, "architecture 'gpt5' is not supported, expected llama"),
        ({"llama.block_count": None}, "llama.block_count: missing, expected an integer from 1 to 1024"),
        ({"llama.block_count": 0}, "llama.block_count: found 0"),
        ({"llama.block_count": 2}, "'blk.1.attn_norm.weight': missing, expected shape (64,)"),
        ({"llama.embedding_length": "wide"}, "llama.embedding_length: found 'wide', expected an integer"),
        ({"llama.attention.head_count_kv": 3}, "found 3, expected a divisor of 2 heads"),
        ({"llama.attention.head_count": 1, "llama.attention.head_count_kv": 1}, "has shape (32, 64)"),
        ({"llama.rope.dimension_count": 16}, "found 16, expected the head width 32"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base: found nan, expected a number"),
        ({"llama.rope.freq_base": float("inf")}, "llama.rope.freq_base: found inf"),
        (
            {"llama.rope.scaling.type": "yarn"},
            "llama.rope.scaling.type: found 'yarn', which is not supported",
        ),
        ({"llama.expert_count": 8}, "llama.expert_count: found 8"),
        ({"llama.attention.sliding_window": 8.5}, "llama.attention.sliding_window: found 8.5, expected"),
        ({"llama.final_logit_softcapping": 30.0}, "llama.final_logit_softcapping: found 30.0, which is not"),
        ({"llama.attention.causal": False}, "llama.attention.causal: found False, which is not supported"),
        ({"llama.rope.scaling.factor": -2.0}, "llama.rope.scaling.factor: found -2.0, expected a number"),
        ({"llama.attention.layer_norm_rms_epsilon": 2.0}, "found 2.0, expected a number from 1e-12 to 0.1"),
        ({"llama.vocab_size": 999}, "vocab_size: found 999, expected the 265 listed tokens"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer 'bert' is not supported"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken' is not supported, expected one of smollm"),
        ({"tokenizer.ggml.merges": ["x y"]}, "entry 0 ('x y') does not join two tokens"),
        ({"tokenizer.ggml.token_type": [1] * 264}, "found a list of 264 int32, expected a list of 265 int"),
        ({"tokenizer.ggml.token_type": [9] * 265}, "tokenizer.ggml.token_type: found 9, expected 1 to 6"),
        ({"tokenizer.ggml.tokens": ["same"] * 265}, "'same' is listed twice"),
        ({"tokenizer.ggml.eos_token_id": 265}, "found 265, expected an integer from 0 to 264"),
        ({"split.count": 3}, "one part of several"),
    ],
)
def test_metadata_that_cannot_be_honoured_are_refused_by_name(
    write_gguf: Any, metadata: dict[str, Any], words: str
) -> None:
    assert words in refusal(write_gguf(metadata))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"blk.0.attn_q.weight": None}, "'blk.0.attn_q.weight': missing, expected shape (64, 64)"),
        ({"blk.0.attn_q.weight": np.ones((32, 64), np.float32)}, "has shape (32, 64), expected (64, 64)"),
        ({"blk.0.attn_q.bias": np.ones(64, np.float32)}, "'blk.0.attn_q.bias': is not known"),
        ({"blk.0.attn_q_norm.weight": np.ones(32, np.float32)}, "'blk.0.attn_q_norm.weight': is not known"),
        ({"rope_freqs.weight": np.ones(8, np.float32)}, "has shape (8,), expected (16,)"),
        ({"rope_freqs.weight": np.zeros(16, np.float32)}, "holds a factor that is not above 0"),
        ({"output_norm.weight": np.ones(64, np.float16)}, "has type F16, expected F32 for a vector"),
        ({"output_norm.weight": np.full(64, np.nan, np.float32)}, "'output_norm.weight': holds a scale or"),
        ({"blk.0.attn_v.weight": np.full((32, 64), np.inf, np.float16)}, "'blk.0.attn_v.weight': holds"),
        ({"blk.0.attn_q.weight": (np.zeros((64, 84), np.uint8), "Q2_K")}, "type Q2_K is not supported"),
        ({"blk.0.attn_q.weight": (np.zeros((64, 36), np.uint8), "IQ4_NL")}, "type IQ4_NL is not supported"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    write_gguf: Any, tensors: dict[str, Any], words: str
) -> None:
    assert words in refusal(write_gguf(tensors=tensors))


@pytest.mark.parametrize(
    ("kind", "columns", "block", "at"),
    [
        ("Q4_0", 64, 18, 0),
        ("Q4_1", 64, 20, 2),
        ("Q5_0", 64, 22, 22),
        ("Q5_1", 64, 24, 26),
        ("Q8_0", 64, 34, 34),
        ("Q4_K", 256, 144, 2),
        ("Q5_K", 256, 176, 0),
        ("Q6_K", 256, 210, 208),
        ("BF16", 64, 2, 40),
    ],
)
def test_a_scale_or_number_that_is_not_finite_is_found(
    write_gguf: Any, kind: str, columns: int, block: int, at: int
) -> None:
    per_block = {"BF16": 1, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256}.get(kind, 32)
    raw = np.zeros((64, columns // per_block * block), np.uint8)
    raw[63, at : at + 2] = (0x80, 0x7F) if kind == "BF16" else (0x00, 0x7C)
    tensors: dict[str, Any] = {"blk.0.attn_q.weight": (raw, kind)}
    metadata = {}
    if columns == 256:
        metadata = {"llama.feed_forward_length": 256}
        wide = np.zeros((256, 64), np.float32)
        tensors = {"blk.0.ffn_down.weight": (raw, kind)}
        tensors |= {"blk.0.ffn_gate.weight": wide, "blk.0.ffn_up.weight": wide}
    assert "not finite" in refusal(write_gguf(metadata, tensors))


def test_every_truncation_is_refused(write_gguf: Any, tmp_path: Path) -> None:
    whole = write_gguf().read_bytes()
    cut = tmp_path / "cut.gguf"
    rng = random.Random(1)
    for size in [*range(0, 200, 7), *(rng.randrange(len(whole)) for _ in range(150)), len(whole) - 33]:
        cut.write_bytes(whole[:size])
        refusal(cut)


@pytest.mark.parametrize("sentencepiece", [False, True])
def test_bit_flips_give_a_clear_error_or_a_clean_load_and_never_take_long(
    write_gguf: Any, tmp_path: Path, sentencepiece: bool
) -> None:
    tables = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            "<unk>",
            "<s>",
            "</s>",
            *map("<0x{:02X}>".format, range(256)),
            *"then",
            "th",
        ],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 5,
        "tokenizer.ggml.scores": [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, -5.0],
    }
    whole = write_gguf(tables if sentencepiece else None).read_bytes()
    flipped = tmp_path / "flipped.gguf"
    rng = random.Random(2)
    # The header and tables are about 12 kB in front of the weights: most flips go there.
    places = [rng.randrange(12_000) for _ in range(1000)] + [rng.randrange(len(whole)) for _ in range(300)]
    refused = 0
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        flipped.write_bytes(data)
        start = time.perf_counter()
        try:
            tokenizer = Tokenizer(read_gguf(flipped).tokenizer)
            assert tokenizer.encode("the end")
            tokenizer.decode(range(tokenizer.vocab_size))
        except ModelFileError:
            refused += 1
        assert time.perf_counter() - start < 2.0
    assert refused > len(places) // 4


@pytest.mark.parametrize("count", [2**62, 2**63, 2**64 - 1, 2**40, 10**9])
def test_counts_beyond_the_file_are_refused_before_memory_is_taken(
    write_gguf: Any, tmp_path: Path, count: int
) -> None:
    whole = write_gguf().read_bytes()
    huge = tmp_path / "huge.gguf"
    number = count.to_bytes(8, "little")
    token_count = whole.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    for place in (8, 16, 24, token_count):
        huge.write_bytes(whole[:place] + number + whole[place + 8 :])
        start = time.perf_counter()
        refusal(huge)
        assert time.perf_counter() - start < 1.0
