"""What folders of trained drafters have in common: config.json, its decoder layers, and checked tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import IncompatibleDrafter, ModelFileError

Floats = NDArray[np.float32]

CONFIG, TENSORS = "config.json", "model.safetensors"

NEUTRAL: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "quantization_config": (None,),
    "logit_scale": (1, 1.0),
}
"""Settings of decoder layers that change their arithmetic, with the values that are implemented."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """What is alike in all drafters that are made of decoder layers.

    hidden, ffn, heads, kv_heads, head_dim, norm_eps   of a decoder layer
    vocab_size            tokens of the target
    draft_vocab_size      tokens that it can propose
    context               positions it was trained for
    rope_theta, rope_scaling   rotary frequencies, as transformers has them
    verifier              name of the target it was trained for; empty: not said
    """

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    vocab_size: int
    draft_vocab_size: int
    context: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    verifier: str = ""

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Rotary frequencies, float64 [head_dim/2]; scaled as Llama 3.1's are, or linearly, if at all."""
        return rotary_frequencies(self.rope_theta, self.head_dim, self.rope_scaling)

    def described(self, model_type: str, layers: int) -> dict[str, Any]:
        """So many such layers as transformers describes them, with the rotary settings where its versions
        before and after 5 look for them."""
        scaling = dict(self.rope_scaling)
        return {
            "model_type": model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling or None,
            "rope_parameters": {"rope_theta": self.rope_theta, **(scaling or {"rope_type": "default"})},
            "attention_bias": False,
            "tie_word_embeddings": False,
            "vocab_size": self.vocab_size,
        }


class Settings:
    """An object of config.json whose values are asked for by name and range."""

    def __init__(self, path: Path, held: Mapping[str, Any], at: str = "") -> None:
        self.path, self._held, self._at = path, held, at

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def inside(self, key: str) -> Settings:
        found = self._held.get(key)
        if not isinstance(found, dict):
            raise self.wrong(key, "an object")
        return Settings(self.path, found, f"{self._at}{key}.")

    def integer(self, key: str, default: int | None = None) -> int:
        found = self._or(key, default)
        if type(found) is not int or not 1 <= found < 1 << 31:
            raise self.wrong(key, "a whole number above 0")
        return found

    def token(self, key: str, vocab_size: int) -> int:
        found = self._held.get(key)
        if type(found) is not int or not 0 <= found < vocab_size:
            raise self.wrong(key, f"one of the target's {vocab_size} tokens")
        return found

    def number(self, key: str, default: float | None = None) -> float:
        found = self._or(key, default)
        if type(found) not in (int, float) or not 0 < found < 1e15:
            raise self.wrong(key, "a number above 0")
        return float(found)

    def flag(self, key: str, default: bool) -> bool:
        found = self._or(key, default)
        if type(found) is not bool:
            raise self.wrong(key, "true or false")
        return found

    def get(self, key: str) -> Any:
        return self._held.get(key)

    def ids(self, key: str, added: int) -> tuple[int, ...]:
        found = self._held.get(key)
        if not isinstance(found, list) or not found or not all(type(id) is int for id in found):
            raise self.wrong(key, "a list of whole numbers")
        return tuple(id + added for id in found)

    def wrong(self, key: str, expected: str) -> ModelFileError:
        found = json.dumps(self._held[key])[:80] if key in self._held else "nothing"
        return ModelFileError(f"{self.path}: {self._at}{key} is {found}, expected {expected}")

    def _or(self, key: str, default: Any) -> Any:
        found = self._held.get(key)
        return default if found is None else found


def decoder_of(held: Settings, layer: Settings, *, head_dim: int | None, context: int) -> dict[str, Any]:
    """The fields of `DecoderConfig` but for the verifier. held: where the drafter's own settings are; layer:
    where those of its decoder layers are; head_dim, context: where these say nothing, None: the width of
    hidden states divided among the heads. Raises ModelFileError."""
    for key, neutral in NEUTRAL.items():
        expect(layer, key, neutral)
    hidden, heads = layer.integer("hidden_size"), layer.integer("num_attention_heads")
    kv_heads = layer.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise layer.wrong("num_key_value_heads", f"a divisor of {heads}")
    vocab_size = layer.integer("vocab_size")
    theta, scaling = rope_of(layer)
    return {
        "hidden": hidden,
        "ffn": layer.integer("intermediate_size"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": layer.integer("head_dim", head_dim or max(1, hidden // heads)),
        "norm_eps": layer.number("rms_norm_eps", 1e-6),
        "vocab_size": vocab_size,
        "draft_vocab_size": draft_vocabulary(held, "draft_vocab_size", vocab_size),
        "context": layer.integer("max_position_embeddings", context),
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def expect(held: Settings, key: str, values: tuple[object, ...]) -> None:
    """Raise ModelFileError if a setting is there and none of these values."""
    if key in held and held.get(key) not in values:
        raise held.wrong(key, json.dumps(values[0]))


def draft_vocabulary(held: Settings, key: str, vocab_size: int) -> int:
    """How many of the target's tokens can be proposed. Raises ModelFileError."""
    found = held.integer(key, vocab_size)
    if found > vocab_size:
        raise held.wrong(key, f"at most the target's {vocab_size} tokens")
    return found


def rope_of(layer: Settings) -> tuple[float, dict[str, Any]]:
    """The base, and how frequencies are scaled; transformers 5 has both in `rope_parameters`."""
    within = layer.inside("rope_parameters") if layer.get("rope_parameters") else layer
    theta = within.number("rope_theta", 10000.0)
    if within is layer:
        if not layer.get("rope_scaling"):
            return theta, {}
        within = layer.inside("rope_scaling")
    key = "rope_type" if "rope_type" in within else "type"
    kind = within.get(key)
    if kind in (None, "default"):
        return theta, {}
    if kind == "linear":
        return theta, {"rope_type": kind, "factor": within.number("factor")}
    if kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return theta, {"rope_type": kind, **{key: within.number(key) for key in keys}}
    raise within.wrong(key, '"default", "linear" or "llama3"')


def held_layers(ids: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """These ids of hidden states, if a target of so many layers has them. Raises IncompatibleDrafter."""
    if not all(0 <= id <= layers for id in ids) or list(ids) != sorted(set(ids)):
        raise IncompatibleDrafter(
            f"the drafter reads the hidden states {', '.join(map(str, ids))}, a target of {layers} "
            f"layers has 0 to {layers}, each to be read once and in order"
        )
    return ids


def rotary_frequencies(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """float64 [head_dim/2]: see `DecoderConfig.frequencies`."""
    exponents: NDArray[np.float64] = -np.arange(0, head_dim, 2) / head_dim
    frequencies = theta**exponents
    if not scaling:
        return frequencies
    slowed: NDArray[np.float64] = frequencies / scaling["factor"]
    if scaling["rope_type"] == "linear":
        return slowed
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * pi)
    share: NDArray[np.float64] = np.clip((turns - low) / (high - low), 0, 1)
    return share * frequencies + (1 - share) * slowed


def taken(
    path: Path, found: dict[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], unused: Set[str]
) -> dict[str, Floats]:
    """Those of the tensors found in a file that have these names, with these shapes. Raises ModelFileError
    for one that is missing or wrong, or that is neither of them nor unused."""
    for name in shapes:
        if name not in found:
            raise ModelFileError(f"{path}: tensor {name} is missing")
    if unknown := found.keys() - shapes.keys() - unused:
        raise ModelFileError(f"{path}: a drafter of this kind has no tensor {min(unknown)}")
    return {name: checked_tensor(path, name, found[name], shape) for name, shape in shapes.items()}


def checked_tensor(path: Path, name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> Floats:
    """A tensor of that shape with finite numbers. Raises ModelFileError naming file and tensor."""
    if tensor.shape != shape or tensor.dtype != np.float32:
        raise ModelFileError(
            f"{path}: tensor {name} is {tensor.dtype} {list(tensor.shape)}, expected floats {list(shape)}"
        )
    if not np.isfinite(tensor).all():
        raise ModelFileError(f"{path}: tensor {name} holds values that are not finite")
    return tensor


def token_ids_of(
    path: Path,
    vocab_size: int,
    draft_vocab_size: int,
    d2t: NDArray[Any] | None,
    t2d: NDArray[Any] | None,
) -> NDArray[np.int64]:
    """The target's id of each token that a drafter can propose: d2t is what must be added to the drafter's
    own. Raises ModelFileError naming the file."""
    own = np.arange(draft_vocab_size)
    if d2t is None:
        if draft_vocab_size != vocab_size:
            raise ModelFileError(f"{path}: tensor d2t is missing, with which tokens become the target's")
        return own
    if d2t.shape != own.shape or d2t.dtype.kind != "i":
        raise ModelFileError(
            f"{path}: tensor d2t is {d2t.dtype} {list(d2t.shape)}, expected whole numbers {list(own.shape)}"
        )
    ids = own + d2t.astype(np.int64)
    if ids.min() < 0 or ids.max() >= vocab_size or len(np.unique(ids)) < len(ids):
        raise ModelFileError(f"{path}: tensor d2t does not lead to different tokens below {vocab_size}")
    if t2d is not None and (
        t2d.shape != (vocab_size,) or not np.array_equal(np.flatnonzero(t2d), np.sort(ids))
    ):
        raise ModelFileError(f"{path}: tensors d2t and t2d name different tokens")
    return ids


def token_map_of(
    path: Path, vocab_size: int, draft_vocab_size: int, token_map: NDArray[Any] | None
) -> NDArray[np.int64]:
    """The target's ids as a tensor `token_map` has them; with all tokens vLLM takes no notice of it. Raises
    ModelFileError naming the file."""
    count = draft_vocab_size
    if count == vocab_size:
        return np.arange(count)
    if token_map is None:
        raise ModelFileError(f"{path}: tensor token_map is missing, with which tokens become the target's")
    if token_map.shape != (count,) or token_map.dtype.kind != "i":
        raise ModelFileError(
            f"{path}: tensor token_map is {token_map.dtype} {list(token_map.shape)}, expected whole numbers "
            f"[{count}]"
        )
    ids = token_map.astype(np.int64)
    if ids.min() < 0 or ids.max() >= vocab_size or len(np.unique(ids)) < count:
        raise ModelFileError(f"{path}: tensor token_map does not name different tokens below {vocab_size}")
    return ids


def proposal(algorithm: str, tokens: int, target: str) -> dict[str, Any]:
    """What the speculators form says of how a drafter is used. tokens: along one path."""
    return {
        "algorithm": algorithm,
        "default_proposal_method": "greedy",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
        "verifier": {"name_or_path": target, "architectures": []},
    }


def known_tokens(token_ids: NDArray[np.int64], vocab_size: int) -> dict[str, NDArray[Any]]:
    """The tensors that say which of the target's tokens a drafter's own are, as speculators has them: d2t
    int64 [D], what must be added to the own id; t2d bool [V], which are there."""
    known = np.zeros(vocab_size, np.bool_)
    known[token_ids] = True
    return {"d2t": token_ids - np.arange(len(token_ids)), "t2d": known}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ModelFileError."""
    try:
        held = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelFileError(f"{path} is damaged: {error}") from None
    if not isinstance(held, dict):
        raise ModelFileError(f"{path} is damaged: expected an object, found {type(held).__name__}")
    return held
