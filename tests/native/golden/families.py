"""Tiny random models of every architecture, as transformers has them and as GGUF files.

The weights come from a seeded generator, so the repository need not hold them; a matrix is made of Q8_0
blocks, whose numbers float32 holds exactly, so that both programs compute with the same ones. Names, order
of rows and metadata of the files are those of llama.cpp's converter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gguf_writer import byte_level_tables, write

Floats = NDArray[np.float32]

VOCABULARY = len(byte_level_tables()["tokenizer.ggml.tokens"])
LENGTH = 40
SCORED = (0, 1, 7, 8, 15, 16, 17, 39)
"""Positions whose logits are kept: around the windows of 8, and at the page size of the cache."""

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tiny model.

    architecture  in GGUF
    kind          the transformers class, without "Config" and "ForCausalLM"
    options       of its configuration, beside the sizes
    metadata      of the file, without the architecture's prefix
    """

    architecture: str
    kind: str
    seed: int
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 96
    tied: bool = True
    bias: bool = False
    head_norms: bool = False
    post_norms: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """The text that the models read."""
        return np.random.default_rng(self.seed + 1000).integers(0, VOCABULARY, LENGTH)


_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILIES = {
    "llama": Family(architecture="llama", kind="Llama", seed=1, tied=False, head_dim=64),
    "llama-3": Family(
        architecture="llama",
        kind="Llama",
        seed=2,
        options={"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **_LLAMA3}},
        metadata={"rope.freq_base": 500000.0},
    ),
    "mistral": Family(
        architecture="llama",
        kind="Mistral",
        seed=3,
        tied=False,
        options={"sliding_window": 8},
        metadata={"attention.sliding_window": 8},
    ),
    "qwen2": Family(
        architecture="qwen2",
        kind="Qwen2",
        seed=4,
        kv_heads=1,
        bias=True,
        options={"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        metadata={"rope.freq_base": 1000000.0},
    ),
    "qwen3": Family(
        architecture="qwen3",
        kind="Qwen3",
        seed=5,
        hidden=96,
        heads=2,
        kv_heads=2,
        head_dim=64,
        head_norms=True,
        options={"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        metadata={"rope.freq_base": 1000000.0},
    ),
    "gemma3": Family(
        architecture="gemma3",
        kind="Gemma3",
        seed=6,
        layers=7,  # the sixth one sees everything
        heads=4,
        kv_heads=1,
        head_dim=32,
        head_norms=True,
        post_norms=True,
        options={
            "sliding_window": 8,
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
        },
        metadata={
            "attention.sliding_window": 8,
            "rope.freq_base": 1000000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
}


def blocks_and_vectors(family: Family) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Floats]]:
    """The matrices as Q8_0 blocks and the vectors as float32, under the names of transformers.

    Gemma's norms are what transformers has: it multiplies by one more.
    """
    rng = np.random.default_rng(family.seed)
    wide, narrow = family.heads * family.head_dim, family.kv_heads * family.head_dim
    shapes = {"model.embed_tokens": (VOCABULARY, family.hidden)}
    if not family.tied:
        shapes["lm_head"] = (VOCABULARY, family.hidden)
    vectors: dict[str, Floats] = {"model.norm.weight": _norm(family.hidden, rng, family)}
    for layer in range(family.layers):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "self_attn.q_proj": (wide, family.hidden),
            at + "self_attn.k_proj": (narrow, family.hidden),
            at + "self_attn.v_proj": (narrow, family.hidden),
            at + "self_attn.o_proj": (family.hidden, wide),
            at + "mlp.gate_proj": (family.ffn, family.hidden),
            at + "mlp.up_proj": (family.ffn, family.hidden),
            at + "mlp.down_proj": (family.hidden, family.ffn),
        }
        norms = ["input_layernorm", "post_attention_layernorm"]
        if family.post_norms:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        vectors |= {f"{at}{norm}.weight": _norm(family.hidden, rng, family) for norm in norms}
        if family.head_norms:
            for part in "qk":
                vectors[f"{at}self_attn.{part}_norm.weight"] = _norm(family.head_dim, rng, family)
        if family.bias:
            for part, width in (("q", wide), ("k", narrow), ("v", narrow)):
                vectors[f"{at}self_attn.{part}_proj.bias"] = rng.uniform(-1, 1, width).astype(np.float32)
    blocks = {f"{name}.weight": _blocks(*shape, rng) for name, shape in shapes.items()}
    return blocks, vectors


def _blocks(rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Q8_0 blocks [rows, bytes]: a scale and 32 numbers of 8 bits each; weights spread by 1/sqrt(columns)."""
    scales = rng.uniform(0.5, 1.5, (rows, columns // 32, 1)) / np.sqrt(columns) / 74
    numbers = rng.integers(-127, 128, (rows, columns // 32, 32)).astype(np.int8)
    blocks = np.concatenate([scales.astype(np.float16).view(np.uint8), numbers.view(np.uint8)], axis=-1)
    return blocks.reshape(rows, -1)


def _norm(width: int, rng: np.random.Generator, family: Family) -> Floats:
    weights = rng.integers(32, 128, width) / np.float32(64)  # exact, also less one
    return (weights - (family.architecture == "gemma3")).astype(np.float32)


def dequantise(blocks: NDArray[np.uint8]) -> Floats:
    """Q8_0 blocks [rows, bytes] as float32 [rows, columns], exactly."""
    parts = blocks.reshape(len(blocks), -1, 34)
    scales = parts[..., :2].copy().view(np.float16).astype(np.float32)
    return (scales * parts[..., 2:].view(np.int8)).reshape(len(blocks), -1)


def write_family(path: Path, family: Family, kind: str = "Q8_0") -> Path:
    """The model as a GGUF file with matrices of type Q8_0 or F32."""
    blocks, vectors = blocks_and_vectors(family)
    weights: dict[str, Any] = {}
    for name, data in [*blocks.items(), *vectors.items()]:
        rows = _permuted(family, name, data)
        if name in vectors:
            weights[gguf_name(family, name)] = rows + (family.architecture == "gemma3")
        else:
            weights[gguf_name(family, name)] = (rows, kind) if kind == "Q8_0" else dequantise(rows)
    if family.options.get("rope_parameters", {}).get("rope_type") == "llama3":
        weights["rope_freqs.weight"] = _llama3_factors(family)
    sizes = {
        "block_count": family.layers,
        "context_length": 512,
        "embedding_length": family.hidden,
        "feed_forward_length": family.ffn,
        "attention.head_count": family.heads,
        "attention.head_count_kv": family.kv_heads,
        "attention.key_length": family.head_dim,
        "attention.value_length": family.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
    }
    metadata = {f"{family.architecture}.{key}": value for key, value in (sizes | family.metadata).items()}
    write(path, {"general.architecture": family.architecture, **metadata, **byte_level_tables()}, weights)
    return path


def gguf_name(family: Family, name: str) -> str:
    """What the converter calls a tensor."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, *part, kind = name.split(".")
    norms = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm" if family.post_norms else "ffn_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
    }
    return f"blk.{layer}.{(_NAMES | norms)['.'.join(part)]}.{kind}"


def _permuted(family: Family, name: str, data: NDArray[Any]) -> NDArray[Any]:
    """Files of architecture "llama" have the rows of Wq and Wk in the order of neighbouring pairs."""
    if family.architecture != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return data
    heads = data.reshape(-1, 2, family.head_dim // 2, *data.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(data.shape)


def _llama3_factors(family: Family) -> Floats:
    """By how much Llama 3.1 slows its rotary frequencies down, as the converter computes it."""
    rope = family.options["rope_parameters"]
    low, high, old = (
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )
    factors = []
    for i in range(0, family.head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / family.head_dim)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)
