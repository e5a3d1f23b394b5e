"""The hyper-parameters of a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from paceline.errors import ModelFileError
from paceline.models.metadata import Metadata

ARCHITECTURES = ("llama",)
"""Values of `general.architecture` that Paceline runs."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "attention.scale": (),
    "attention.clamp_kqv": (0.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "logit_scale": (1.0,),
    "rope.scaling.type": ("none",),
}
"""Settings that change the arithmetic in ways that are not implemented, with the values that do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What a forward pass must know beside the weights.

    architecture      "llama"
    name              for people, from the file
    hidden            width of the residual stream
    layers            decoder blocks
    heads, kv_heads   query heads and key/value heads; kv_heads divides heads
    head_dim          width of one head, even; heads * head_dim need not equal hidden
    ffn               inner width of the feed-forward part
    vocab_size        rows of the embedding
    context           positions the model was trained for
    rope_theta        base of the rotary frequencies
    rope_interleaved  whether rotary pairs are neighbours (2i, 2i+1), which is how files of architecture
                      "llama" order the rows of Wq and Wk, or the two halves (i, i + head_dim/2)
    norm_eps          epsilon of the RMS norms
    tied              whether the output matrix is the embedding
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
    window = metadata.integer(f"{architecture}.attention.sliding_window", 0, 1 << 31, 0)
    if 0 < window < context:
        raise ModelFileError(
            f"{architecture}.attention.sliding_window: found {window}; "
            f"sliding windows below the context ({context}) are not supported"
        )
    return ModelConfig(
        architecture=architecture,
        name="".join(filter(str.isprintable, metadata.text("general.name", architecture)))[:100],
        hidden=hidden,
        layers=integer("block_count", 1 << 10),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=integer("feed_forward_length", 1 << 20),
        vocab_size=integer("vocab_size", 1 << 22, len(metadata.texts("tokenizer.ggml.tokens"))),
        context=context,
        rope_theta=metadata.number(f"{architecture}.rope.freq_base", 1.0, 1e12, 10000.0),
        rope_interleaved=architecture == "llama",
        norm_eps=metadata.number(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-12, 0.1),
        tied=True,
    )


def _refuse_unsupported(metadata: Metadata, architecture: str) -> None:
    """A setting that would be ignored would give another model's answers."""
    for key, neutral in _NEUTRAL.items():
        full = f"{architecture}.{key}"
        if full in metadata and not metadata.equals(full, neutral):
            raise ModelFileError(f"{full}: found {metadata.shown(full)}, which is not supported yet")
