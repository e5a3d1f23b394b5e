"""The hyper-parameters of a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from paceline.errors import ModelFileError
from paceline.models.metadata import Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the files of one architecture have in common, beside the numbers in their metadata.

    title            for people
    rope_interleaved see ModelConfig
    bias, head_norms, post_norms, gelu   see ModelConfig
    scaled_embedding whether embeddings are multiplied by sqrt(hidden)
    global_every     every which layer sees all positions although the others have a window; 0 = none
    """

    title: str
    rope_interleaved: bool = False
    bias: bool = False
    head_norms: bool = False
    post_norms: bool = False
    gelu: bool = False
    scaled_embedding: bool = False
    global_every: int = 0


ARCHITECTURES = {
    "llama": Family(title="Llama, Mistral, SmolLM", rope_interleaved=True),
    "qwen2": Family(title="Qwen2, Qwen2.5", bias=True),
    "qwen3": Family(title="Qwen3", head_norms=True),
    "gemma3": Family(
        title="Gemma 3 (text)",
        head_norms=True,
        post_norms=True,
        gelu=True,
        scaled_embedding=True,
        global_every=6,
    ),
}
"""The architectures that Paceline runs, by their `general.architecture`."""

ROPE_FACTORS = "rope_freqs.weight"
"""A tensor that some Llamas have: rotary frequencies are divided by it."""

_GEMMA_27B_LAYERS = 62
"""The Gemma 3 whose queries are scaled by hidden/heads, not by the head width; its files do not say so."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "attention.scale": (),
    "attention.clamp_kqv": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "logit_scale": (1.0,),
    "rope.scaling.type": ("none", "linear"),
    "rope.scaling.attn_factor": (1.0,),
}
"""Settings that change the arithmetic in ways that are not implemented, with the values that do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What a forward pass must know beside the weights.

    architecture      a key of ARCHITECTURES
    name              for people, from the file
    hidden            width of the residual stream
    layers            decoder blocks
    heads, kv_heads   query heads and key/value heads; kv_heads divides heads
    head_dim          width of one head, even; heads * head_dim need not equal hidden
    ffn               inner width of the feed-forward part
    vocab_size        rows of the embedding
    context           positions the model was trained for
    rope_theta        base of the rotary frequencies
    rope_scaling      what those frequencies are divided by
    rope_interleaved  whether rotary pairs are neighbours (2i, 2i+1), which is how files of architecture
                      "llama" order the rows of Wq and Wk, or the two halves (i, i + head_dim/2); packed
                      weights are always interleaved
    norm_eps          epsilon of the RMS norms
    tied              whether the output matrix is the embedding

    What only some architectures have:

    bias              queries, keys and values have a bias
    head_norms        queries and keys of each head pass an RMS norm before the rotation
    post_norms        what attention and feed-forward yield passes an RMS norm before it is added
    gelu              the gate's activation is GELU (tanh form) and not SiLU
    embedding_scale   factor of the embeddings
    query_scale       factor of the attention scores
    window            positions that a layer with a window sees, its own included; 0 = no layer has one
    global_every      every which layer has no window; 0 = all have one
    window_rope_theta base of the rotary frequencies of layers with a window, which are not scaled then;
                      0 = they are those of all layers
    """

    architecture: str
    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    context: int
    rope_theta: float
    rope_interleaved: bool
    norm_eps: float
    tied: bool
    rope_scaling: float = 1.0
    bias: bool = False
    head_norms: bool = False
    post_norms: bool = False
    gelu: bool = False
    embedding_scale: float = 1.0
    query_scale: float
    window: int = 0
    global_every: int = 0
    window_rope_theta: float = 0.0

    @property
    def windows(self) -> list[int]:
        """Per layer how many positions it sees, its own included; 0 = all."""
        every = self.global_every or self.layers + 1
        return [0 if layer % every == 0 else self.window for layer in range(1, self.layers + 1)]

    def to_json(self) -> str:
        """One JSON object; `from_json` gives the same config back."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        """The config that `to_json` wrote."""
        return ModelConfig(**json.loads(text))


def read_config(metadata: Metadata) -> ModelConfig:
    """The config that a file's metadata describe; whether it is tied only its tensors tell.

    Raises ModelFileError if the architecture is not supported or a value is missing or not plausible.
    """
    architecture = metadata.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            f"architecture {architecture[:60]!r} is not supported, expected {' or '.join(ARCHITECTURES)}"
        )
    family = ARCHITECTURES[architecture]

    def integer(key: str, high: int, default: int | None = None) -> int:
        return metadata.integer(f"{architecture}.{key}", 1, high, default)

    _refuse_unsupported(metadata, architecture)
    hidden = integer("embedding_length", 1 << 17)
    heads = integer("attention.head_count", 1 << 12)
    kv_heads = integer("attention.head_count_kv", 1 << 12, heads)
    if heads % kv_heads:
        raise ModelFileError(
            f"{architecture}.attention.head_count_kv: found {kv_heads}, expected a divisor of {heads} heads"
        )
    head_dim = integer("attention.key_length", 1 << 12, max(1, hidden // heads))
    if head_dim % 2:
        raise ModelFileError(f"head width: found {head_dim}, expected an even number")
    for key in ("attention.value_length", "rope.dimension_count"):
        found = integer(key, 1 << 12, head_dim)
        if found != head_dim:
            raise ModelFileError(f"{architecture}.{key}: found {found}, expected the head width {head_dim}")
    context = integer("context_length", 1 << 24)
    layers = integer("block_count", 1 << 10)
    # The width of Gemma's queries was tuned for one size alone.
    wide_queries = architecture == "gemma3" and layers == _GEMMA_27B_LAYERS
    window = metadata.integer(f"{architecture}.attention.sliding_window", 0, (1 << 32) - 1, 0)
    return ModelConfig(
        architecture=architecture,
        name="".join(filter(str.isprintable, metadata.text("general.name", architecture)))[:100],
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=integer("feed_forward_length", 1 << 20),
        vocab_size=integer("vocab_size", 1 << 22, len(metadata.texts("tokenizer.ggml.tokens"))),
        context=context,
        rope_theta=metadata.number(f"{architecture}.rope.freq_base", 1.0, 1e12, 10000.0),
        rope_scaling=_rope_scaling(metadata, architecture),
        rope_interleaved=family.rope_interleaved,
        norm_eps=metadata.number(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-12, 0.1),
        tied=True,
        bias=family.bias,
        head_norms=family.head_norms,
        post_norms=family.post_norms,
        gelu=family.gelu,
        embedding_scale=hidden**0.5 if family.scaled_embedding else 1.0,
        query_scale=(hidden / heads if wide_queries else head_dim) ** -0.5,
        window=min(window, context),
        **_local_layers(metadata, architecture, family),
    )


def _local_layers(metadata: Metadata, architecture: str, family: Family) -> dict[str, Any]:
    """Which layers have a window where not all have one, and how they rotate."""
    if not family.global_every:
        return {}
    pattern = f"{architecture}.attention.sliding_window_pattern"
    theta = f"{architecture}.rope.freq_base_swa"
    return {
        "global_every": metadata.integer(pattern, 1, 1 << 10, family.global_every),
        "window_rope_theta": metadata.number(theta, 1.0, 1e12, 10000.0),
    }


def _rope_scaling(metadata: Metadata, architecture: str) -> float:
    """By how much linear scaling stretches positions. Files may give a factor without a type."""
    if metadata.text(f"{architecture}.rope.scaling.type", "linear") == "none":
        return 1.0
    old = metadata.number(f"{architecture}.rope.scale_linear", 0.0, 1e6, 0.0)
    return metadata.number(f"{architecture}.rope.scaling.factor", 0.0, 1e6, old) or 1.0


def _refuse_unsupported(metadata: Metadata, architecture: str) -> None:
    """A setting that would be ignored would give another model's answers."""
    for key, neutral in _NEUTRAL.items():
        full = f"{architecture}.{key}"
        if full in metadata and not metadata.equals(full, neutral):
            raise ModelFileError(f"{full}: found {metadata.shown(full)}, which is not supported yet")
