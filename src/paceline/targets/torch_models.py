"""How models of transformers are called for a pass: decoders, those that read an encoded source, and those
that look at images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from paceline.core import Inputs
from paceline.errors import ConfigError
from paceline.targets.torch_attention import Source
from paceline.targets.torch_layout import Span

ANY_LENGTH = 1 << 14
"""What a sequence may hold where a model knows distances only and sets no limit."""


class Decoder:
    """A causal language model."""

    inputs = Inputs.NONE
    hidden = "hidden_states"
    """Where its output holds the features of the layers."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self.layers: int = self.config.num_hidden_layers

    def arguments(
        self, tokens: Tensor, positions: Tensor, spans: Sequence[Span], pads: Tensor | None
    ) -> dict[str, Any]:
        """Of the call for packed rows: tokens, positions int64 [1, N]. pads: [P, hidden size], what stands
        for tokens from the vocabulary's end on; None: there are no such tokens."""
        ones = torch.ones_like(tokens)  # rows are told apart by us, not by leaps in the positions
        read = {"input_ids": tokens} if pads is None else {"inputs_embeds": self._embedded(tokens, pads)}
        return {**read, "position_ids": positions, "attention_mask": ones}

    def _embedded(self, tokens: Tensor, pads: Tensor) -> Tensor:
        """[1, N, hidden size] of tokens and pads."""
        last = self.config.vocab_size - 1
        known = self.model.get_input_embeddings()(tokens.clamp(max=last))
        return torch.where((tokens > last)[..., None], pads[(tokens - last - 1).clamp(min=0)], known)

    def own(self, text: Tensor) -> Tensor:
        """The logits [n, V] of the model itself for a text int64 [1, n], with no part of ours in it."""
        logits: Tensor = self.model(input_ids=text, use_cache=False).logits[0]
        return logits

    def inputs_of_own(self, text: Tensor) -> Any:
        """What a request has beside tokens that asks for the same as `own`."""
        return None


class EncoderDecoder(Decoder):
    """A model whose decoder attends to a source that its encoder has read (T5, BART)."""

    inputs = Inputs.REQUIRED
    hidden = "decoder_hidden_states"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = self.config = model.config
        said = (getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers"))
        self.layers = next((layers for layers in said if layers is not None), config.num_hidden_layers)
        self._nothing_encoded = torch.zeros(
            1, 1, config.hidden_size, dtype=model.dtype, device=model.get_input_embeddings().weight.device
        )

    def arguments(
        self, tokens: Tensor, positions: Tensor, spans: Sequence[Span], pads: Tensor | None
    ) -> dict[str, Any]:
        """Of the call for packed rows. The sources are with the sequences (`Span.inputs`); there are no
        pads."""
        return {
            "decoder_input_ids": tokens,
            "decoder_attention_mask": torch.ones_like(tokens),
            "encoder_outputs": BaseModelOutput(last_hidden_state=self._nothing_encoded),
            "past_key_values": EncoderDecoderCache(_Standing(positions[0]), _WithSequences(self.layers)),
        }

    def own(self, text: Tensor) -> Tensor:
        """The text is source and answer."""
        logits: Tensor = self.model(input_ids=text, decoder_input_ids=text, use_cache=False).logits[0]
        return logits

    def inputs_of_own(self, text: Tensor) -> Source:
        """The text as source."""
        return self.source(self.model.get_encoder()(input_ids=text).last_hidden_state[0])

    def source(self, encoded: Tensor) -> Source:
        """Keys and values of what the encoder made of a source, [E, hidden size], by the model's own code."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with torch.inference_mode():
            self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded[None]),
                decoder_input_ids=torch.zeros(1, 1, dtype=torch.int64, device=encoded.device),
                past_key_values=cache,
                use_cache=True,
            )
        layers: Sequence[Any] = cache.cross_attention_cache.layers
        return Source([layer.keys[0] for layer in layers], [layer.values[0] for layer in layers])


@dataclass(frozen=True, slots=True)
class Seen:
    """A prompt as a vision-language model's decoder gets it: where there were images, what they look like.

    embeddings  [P, hidden size]
    positions   int64 [axes, P]; some models count images on several axes
    """

    embeddings: Tensor
    positions: Tensor


class VisionLanguage(Decoder):
    """A model whose decoder gets the embeddings of images in its prompt (LLaVA, Qwen2-VL). What it gets of a
    prompt is taken from the model's own call of it."""

    inputs = Inputs.OPTIONAL
    taken = frozenset(
        (
            "input_ids",
            "inputs_embeds",
            "position_ids",
            "attention_mask",
            "past_key_values",
            "use_cache",
            "return_dict",
        )
    )
    """What a decoder may be called with; anything else would have to be said of drafted tokens too."""

    def arguments(
        self, tokens: Tensor, positions: Tensor, spans: Sequence[Span], pads: Tensor | None
    ) -> dict[str, Any]:
        """Of the call for packed rows. A text goes on one position after the last of its prompt; there are no
        pads."""
        embeddings = self.model.get_input_embeddings()(tokens)
        seen = [span for span in spans if span.inputs is not None]
        if seen:
            positions = positions.repeat(max(len(span.inputs.positions) for span in seen), 1)
        for span in seen:
            prompt = span.inputs
            length = len(prompt.embeddings)
            inside = min(max(0, length - span.entry), span.last - span.first)
            rows, behind = slice(span.first, span.first + inside), slice(span.first + inside, span.last)
            entries = slice(span.entry, span.entry + inside)
            embeddings[0, rows] = prompt.embeddings[entries]
            positions[:, rows] = prompt.positions[:, entries]
            positions[:, behind] += prompt.positions[:, -1:] + 1 - length
        return {
            "inputs_embeds": embeddings,
            "position_ids": positions if len(positions) == 1 else positions[:, None],
            "attention_mask": torch.ones_like(tokens),
        }

    def see(
        self, input_ids: Tensor, kept: Tensor, more: Mapping[str, Any], *, whole: bool
    ) -> tuple[list[Seen], Tensor | None]:
        """The prompts of a batch, and if the whole pass is wanted the model's own logits [B, V] after each.

        input_ids, kept: int64 and bool [B, P]; more: the other arguments of `generate` for the model. Raises
        ConfigError if the decoder gets of the images what it could not get again for drafted tokens.
        """
        given = self.model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **more)
        caught: dict[str, Any] = {}

        def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.update(kwargs)
            if not whole:
                raise _Reached

        hook = self.model.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
        own = None
        try:
            with torch.inference_mode():
                own = self.model(**given, return_dict=True).logits[:, -1]
        except _Reached:
            pass
        finally:
            hook.remove()
        kind, mask = type(self.model).__name__, caught.get("attention_mask")
        embeddings = caught.get("inputs_embeds")
        if embeddings is None:
            raise ConfigError(f"{kind} gives its decoder no embeddings, which is not supported")
        for name, value in caught.items():
            if name not in self.taken and value is not None and value is not False:
                raise ConfigError(f"{kind} gives its decoder {name}, which is not supported")
        if not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
            raise ConfigError(
                f"{kind} has its decoder see images in other ways than text, which is not supported"
            )
        positions = caught.get("position_ids")
        counted = kept.to(torch.int64).cumsum(1) - 1 if positions is None else positions
        on_axes = (counted[None] if counted.ndim == 2 else counted).expand(-1, *kept.shape)
        return [
            Seen(embeddings[row, keep], on_axes[:, row, keep].clone()) for row, keep in enumerate(kept)
        ], own


class _Reached(Exception):
    """The decoder was called; the rest of the pass is not wanted."""


class _Standing(Cache):  # type: ignore[misc]
    """In place of the cache of self-attention: hands back what it gets, for ours keeps it, and says how many
    tokens stand before each row of a pass, from which models that are not given positions count them."""

    def __init__(self, positions: Tensor) -> None:
        super().__init__(layers=[])
        self._before = positions - torch.arange(len(positions), device=positions.device)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> Tensor:
        return self._before

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0


class _WithSequences(Cache):  # type: ignore[misc]
    """In place of the cache of cross-attention, whose keys and values are with the sequences: there are none
    here, but it says that there are, or the model would compute them."""

    def __init__(self, layers: int) -> None:
        nothing = torch.empty(1, 1, 0, 1)
        super().__init__(layers=[SimpleNamespace(keys=nothing, values=nothing)] * layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 1


def calls_of(model: Any) -> Decoder:
    """How to call this model. Raises ConfigError for one that this target can never serve."""
    kind = type(model).__name__
    if not hasattr(model, "_supports_logits_to_keep") or model.get_output_embeddings() is None:
        raise ConfigError(f"{kind} is no language model of transformers")
    if model.main_input_name != "input_ids":
        raise ConfigError(f"{kind} reads {model.main_input_name}; only models that read tokens are supported")
    if not model._can_set_attn_implementation():
        raise ConfigError(f"{kind} does not use transformers' attention interface, which our cache needs")
    if model._is_stateful:
        raise ConfigError(f"{kind} keeps a recurrent state, which cannot be rewound when a draft is refused")
    if model.training:
        raise ConfigError(f"{kind} is in training mode; call its eval() first")
    if model.config.is_encoder_decoder:
        return EncoderDecoder(model)
    return Decoder(model) if getattr(model.config, "vision_config", None) is None else VisionLanguage(model)


def longest(config: Any) -> int:
    """How many tokens a sequence may hold. Rotary frequencies that change with the text's length would make
    a row depend on its neighbours: such models end where they would begin to change."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None and hasattr(config, "relative_attention_num_buckets"):
        return ANY_LENGTH
    if limit is None:
        raise ConfigError(
            f"{config.model_type} does not say how long its texts may be (max_position_embeddings)"
        )
    found: list[int] = [limit]
    kinds = getattr(config, "rope_parameters", None) or {}
    for parameters in (kinds, *(kind for kind in kinds.values() if isinstance(kind, dict))):
        if parameters.get("rope_type") == "longrope":
            found.append(parameters["original_max_position_embeddings"])
    return min(found)
