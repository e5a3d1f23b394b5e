"""Folders of trained drafters: config.json and model.safetensors, in the two forms that other engines read.

The form of the speculators library, which vLLM loads, and the native one of EAGLE-3 (SGLang, SpecForge, the
authors' own repository), whose first layer is called `midlayer`. What both say is one frozen record.

Two settings are traps. Layer ids: `eagle_aux_hidden_state_layer_ids` at the top of a config counts as
transformers' `hidden_states` do, where 0 are the embeddings; inside `eagle_config`, where SGLang looks, and
as `target_layer_ids`, i is what layer i yields, which is one more there. `norm_output` missing means false to
vLLM, SGLang and SpecForge; `norm_before_residual` missing means true in the speculators form, false in the
native one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import IncompatibleDrafter, ModelFileError
from paceline.models.safetensors_file import read_safetensors

Floats = NDArray[np.float32]

CONFIG, TENSORS = "config.json", "model.safetensors"
NATIVE_ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "num_hidden_layers": (1,),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
    "logit_scale": (1, 1.0),
}
"""Settings of the decoder layer that change its arithmetic, with the values that are implemented."""

_UNUSED = {"verifier_lm_head.weight", "verifier_norm.weight", "layers.0.self_attn.rotary_emb.inv_freq"}
"""Tensors that some folders hold and drafting does not need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Config:
    """What the forward pass of an EAGLE-3 drafter must know beside its weights.

    hidden, ffn, heads, kv_heads, head_dim, norm_eps   of its one decoder layer
    vocab_size            tokens of the target: rows of the embedding
    draft_vocab_size      tokens that it can propose
    context               positions it was trained for
    target_hidden         width of the target's hidden states
    layer_ids             the target's hidden states that it reads, counted as transformers does: 0 are the
                          embeddings, k is what k layers made of them; None: those of `layers_of` a target
    rope_theta, rope_scaling   rotary frequencies, as transformers has them
    norm_before_residual  the residual stream starts behind `hidden_norm`, not before
    norm_before_fc        an RMS norm of all hidden states together comes before `fc`
    fc_norm               an RMS norm of each hidden state comes before `fc`
    norm_output           what is fed on is behind the last norm, not before
    verifier              name of the target it was trained for; empty: not said
    draft_tokens          drafted tokens along one path that it was trained for
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
    target_hidden: int
    layer_ids: tuple[int, ...] | None
    rope_theta: float
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool
    verifier: str = ""
    draft_tokens: int = 3

    def layers_of(self, layers: int) -> tuple[int, ...]:
        """The hidden states that it reads of a target with so many layers. Raises IncompatibleDrafter."""
        return held_layers(self.layer_ids or (2, layers // 2, layers - 3), layers)

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Rotary frequencies, float64 [head_dim/2]; scaled as Llama 3.1's are, or linearly, if at all."""
        return rotary_frequencies(self.rope_theta, self.head_dim, self.rope_scaling)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that every such drafter has, and their shapes."""
        c, q, kv = self, self.heads * self.head_dim, self.kv_heads * self.head_dim
        states = len(self.layer_ids or (0, 0, 0))
        shapes: dict[str, tuple[int, ...]] = {
            "fc.weight": (c.hidden, states * c.target_hidden),
            "layers.0.input_layernorm.weight": (c.hidden,),
            "layers.0.hidden_norm.weight": (c.hidden,),
            "layers.0.self_attn.q_proj.weight": (q, 2 * c.hidden),
            "layers.0.self_attn.k_proj.weight": (kv, 2 * c.hidden),
            "layers.0.self_attn.v_proj.weight": (kv, 2 * c.hidden),
            "layers.0.self_attn.o_proj.weight": (c.hidden, q),
            "layers.0.post_attention_layernorm.weight": (c.hidden,),
            "layers.0.mlp.gate_proj.weight": (c.ffn, c.hidden),
            "layers.0.mlp.up_proj.weight": (c.ffn, c.hidden),
            "layers.0.mlp.down_proj.weight": (c.hidden, c.ffn),
            "norm.weight": (c.hidden,),
            "lm_head.weight": (c.draft_vocab_size, c.hidden),
        }
        if self.norm_before_fc:
            shapes["input_norm.weight"] = (states * c.target_hidden,)
        if self.fc_norm:
            shapes |= {f"fc_norm.{i}.weight": (c.target_hidden,) for i in range(states)}
        return shapes


@dataclass(frozen=True, slots=True)
class Eagle3Weights:
    """An EAGLE-3 drafter as its folder describes it.

    tensors    float32, by the names of `Eagle3Config.shapes`; "embed_tokens.weight" [vocab_size, hidden] too
               where it has embeddings of its own and does not use the target's
    token_ids  int64 [draft_vocab_size]: the target's id of each token it can propose
    """

    config: Eagle3Config
    tensors: Mapping[str, Floats]
    token_ids: NDArray[np.int64]


def held_layers(ids: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """These ids of hidden states, if a target of so many layers has them. Raises IncompatibleDrafter."""
    if not all(0 <= id <= layers for id in ids) or list(ids) != sorted(set(ids)):
        raise IncompatibleDrafter(
            f"the drafter reads the hidden states {', '.join(map(str, ids))}, a target of {layers} "
            f"layers has 0 to {layers}, each to be read once and in order"
        )
    return ids


def rotary_frequencies(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """float64 [head_dim/2]: see `Eagle3Config.frequencies`."""
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


def read_drafter(folder: Path) -> Eagle3Weights:
    """The drafter in a folder. Raises ModelFileError naming what is wrong with it."""
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    config = _speculators(held) if "speculators_model_type" in held else _native(held)
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(f"{folder}: there is no {TENSORS}")
    found = {
        name.removeprefix("model.").replace("midlayer.", "layers.0."): tensor
        for name, tensor in read_safetensors(path).items()
    }
    tensors: dict[str, Floats] = {}
    shapes = config.shapes
    if "embed_tokens.weight" in found:
        shapes["embed_tokens.weight"] = (config.vocab_size, config.hidden)
    for name, shape in shapes.items():
        if name not in found:
            raise ModelFileError(f"{path}: tensor {name} is missing")
        tensors[name] = checked_tensor(path, name, found.pop(name), shape)
    token_ids = token_ids_of(
        path, config.vocab_size, config.draft_vocab_size, found.pop("d2t", None), found.pop("t2d", None)
    )
    if unknown := found.keys() - _UNUSED:
        raise ModelFileError(f"{path}: an EAGLE-3 drafter has no tensor {min(unknown)}")
    return Eagle3Weights(config, tensors, token_ids)


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


def _speculators(held: Settings) -> Eagle3Config:
    if held.get("speculators_model_type") != "eagle3":
        raise held.wrong("speculators_model_type", '"eagle3"')
    verifier = draft_tokens = None
    if "speculators_config" in held:
        described = held.inside("speculators_config")
        if described.get("verifier"):
            verifier = described.inside("verifier").get("name_or_path")
        methods = described.get("proposal_methods")
        if isinstance(methods, list) and methods and isinstance(methods[0], dict):
            draft_tokens = Settings(held.path, methods[0]).integer("speculative_tokens", 3)
    return _config(
        held,
        held.inside("transformer_layer_config"),
        layer_ids=_ids(held, (("eagle_aux_hidden_state_layer_ids", 0),)),
        norm_before_residual=held.flag("norm_before_residual", True),
        verifier=str(verifier or ""),
        draft_tokens=draft_tokens or 3,
    )


def _native(held: Settings) -> Eagle3Config:
    named = held.get("architectures")
    if not isinstance(named, list) or not any(one in NATIVE_ARCHITECTURES for one in named):
        raise held.wrong(
            "architectures", f"one of {', '.join(NATIVE_ARCHITECTURES)}, or speculators_model_type"
        )
    layer_ids = _ids(held, (("eagle_aux_hidden_state_layer_ids", 0), ("target_layer_ids", 1)))
    if layer_ids is None and held.get("eagle_config"):
        layer_ids = _ids(held.inside("eagle_config"), (("eagle_aux_hidden_state_layer_ids", 1),))
    return _config(
        held, held, layer_ids=layer_ids, norm_before_residual=held.flag("norm_before_residual", False)
    )


def _ids(held: Settings, keys: tuple[tuple[str, int], ...]) -> tuple[int, ...] | None:
    """The ids under the first key that is there, with what must be added to them."""
    return next((held.ids(key, added) for key, added in keys if held.get(key) is not None), None)


def _config(held: Settings, layer: Settings, **known: Any) -> Eagle3Config:
    """held: where the drafter's own settings are; layer: where those of its decoder layer are."""
    for key, neutral in _NEUTRAL.items():
        if key in layer and layer.get(key) not in neutral:
            raise layer.wrong(key, json.dumps(neutral[0]))
    hidden, heads = layer.integer("hidden_size"), layer.integer("num_attention_heads")
    kv_heads = layer.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise layer.wrong("num_key_value_heads", f"a divisor of {heads}")
    head_dim = layer.integer("head_dim", max(1, hidden // heads))
    vocab_size = layer.integer("vocab_size")
    draft_vocab_size = held.integer("draft_vocab_size", vocab_size)
    if draft_vocab_size > vocab_size:
        raise held.wrong("draft_vocab_size", f"at most the target's {vocab_size} tokens")
    theta, scaling = rope_of(layer)
    return Eagle3Config(
        hidden=hidden,
        ffn=layer.integer("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=layer.number("rms_norm_eps", 1e-6),
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocab_size,
        context=layer.integer("max_position_embeddings", 2048),
        target_hidden=held.integer("target_hidden_size", hidden),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_before_fc=held.flag("norm_before_fc", False),
        fc_norm=held.flag("fc_norm", False),
        norm_output=held.flag("norm_output", False),
        **known,
    )


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
