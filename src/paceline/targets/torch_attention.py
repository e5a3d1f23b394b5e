"""Attention of transformers' models over our own cache, each node along its own path.

transformers' models look up their attention function and their mask function by a name in their config. Under
NAME stand ours. During a `Pass` of ours a model is called with packed rows, [1, N]; its mask function says
which positions may see which (all before, a window, a chunk), and we hold that against the paths of the
drafted trees; its layers hand us queries, keys and values, and we keep the latter in the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from paceline.errors import ConfigError
from paceline.targets.torch_cache import Pool
from paceline.targets.torch_layout import Layout, Span
from paceline.targets.torch_packed import Packed

NAME = "paceline"

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' (batch, head, query position, key position) -> whether it is seen, elementwise."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a decoder attends to beside its text: keys and values [heads, E, width] of each layer.

    assistant: the same source as a model that drafts has read it, if there is one that reads sources.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    assistant: Source | None = None


class Mask:
    """What nodes see. seen: bool [B, n, L]; None where all see everything."""

    def __init__(self, seen: Tensor | None) -> None:
        self.seen = seen
        self._added: dict[tuple[int, torch.dtype], Tensor] = {}

    def added(self, shared: int, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, shared * n, L], to be added to logits of `shared` heads side by side: -inf where nothing is
        seen. Made once for all layers."""
        if self.seen is None:
            return None
        found = self._added.get((shared, dtype))
        if found is None:
            seen = self.seen.repeat(1, shared, 1)[:, None]
            found = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._added[shared, dtype] = found
        return found


class Pass:
    """One call of a model over parts of B sequences.

    They are attended to together, each padded to n nodes and L entries: no loop over sequences. layout: its
    arrays, as tensors. straight: the entries of the only sequence, if they lie behind one another in the
    pool; all_seen: whether nothing is masked. nodewise: attend to one node after the other instead, in shapes
    that follow from the node's position alone. That is slow, and the reference of the other way.
    """

    def __init__(
        self,
        layout: Layout,
        pool: Pool,
        spans: Sequence[Span] = (),
        *,
        straight: slice | None = None,
        all_seen: bool = False,
        nodewise: bool = False,
    ) -> None:
        self.layout = layout
        self.spans = spans
        self._pool = pool
        self._nodewise = nodewise
        self._straight = straight
        self._all_seen = all_seen
        self._layers: set[int] = set()
        self._biases: Tensor | None = None  # [B, heads, n, L]
        batch, nodes, _ = layout.visible.shape
        self._at = (
            layout.positions.view(batch, nodes) if layout.rows is None else layout.positions[layout.rows]
        )

    def mask(self, function: MaskFunction) -> Mask:
        """What each node sees, under a mask function of the model."""
        visible = self.layout.visible
        if function is causal_mask_function:  # which paths keep to by themselves
            return Mask(None if self._all_seen else visible)
        zero = torch.zeros((), dtype=torch.int64, device=visible.device)
        return Mask(visible & function(zero, zero, self._at[:, :, None], self.layout.known[:, None, :]))

    def relate(self, module: Any) -> None:
        """Take over what a module of T5's kind adds to logits by how far apart two tokens are. The layers
        behind it add the same."""
        longest = self.layout.places.shape[1]
        by_distance = module.compute_bias(1, longest, past_seen_tokens=longest - 1)[0, :, 0].flip(-1)
        apart = self._at[:, :, None] - self.layout.known[:, None, :]
        self._biases = by_distance[:, apart.clamp(min=0)].transpose(0, 1)  # what lies ahead is not seen

    @property
    def relates(self) -> bool:
        """Whether distances count."""
        return self._biases is not None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Mask, **how: Any) -> Tensor:
        """Keep the keys and values [1, heads, N, width]; the attended values [1, N, query heads, width]."""
        if layer in self._layers:
            raise ConfigError(f"layer {layer} of this model attends twice in a pass, which is not supported")
        self._layers.add(layer)
        written = self.layout.written
        if self._straight is not None:
            written = slice(self._straight.stop - len(written), self._straight.stop)
        keys, values = self._pool.write(layer, written, key[0], value[0])
        attend = self._one_by_one if self._nodewise else self._together
        return attend(query, keys, values, mask, **how)

    def _together(self, query: Tensor, keys: Tensor, values: Tensor, mask: Mask, **how: Any) -> Tensor:
        """[1, N, heads, width]: all sequences at a time."""
        rows, at = self.layout.rows, self.layout.places
        if self._straight is not None:
            keys, values = keys[None, self._straight], values[None, self._straight]
        else:
            keys, values = keys[at], values[at]
        if rows is not None:
            query = query[0][:, rows].transpose(0, 1)
        elif len(at) > 1:
            query = query[0].unflatten(1, self._at.shape).transpose(0, 1)
        shared = query.shape[1] // keys.shape[2]
        found = attended(
            query, keys.transpose(1, 2), values.transpose(1, 2), mask.added(shared, query.dtype),
            bias=self._biases, **how,
        ).transpose(1, 2).flatten(0, 1)  # fmt: skip
        return (found if rows is None else found[self.layout.nodes])[None]

    def _one_by_one(self, query: Tensor, keys: Tensor, values: Tensor, mask: Mask, **how: Any) -> Tensor:
        """[1, N, heads, width]: every node by itself."""
        assert mask.seen is not None
        found = query.new_zeros(1, query.shape[2], query.shape[1], values.shape[2])
        for number, span in enumerate(self.spans):
            for node in range(span.last - span.first):
                entries = mask.seen[number, node].nonzero()[:, 0]
                places = self.layout.places[number, entries]
                own = query[:, :, span.first + node, None]
                bias = None if self._biases is None else self._biases[number, None, :, node, None, entries]
                found[:, span.first + node] = attended(
                    own, keys[None, places].transpose(1, 2), values[None, places].transpose(1, 2), None,
                    bias=bias, **how,
                )[:, :, 0]  # fmt: skip
        return found

    def attend_source(self, layer: int, query: Tensor, **how: Any) -> Tensor:
        """The attended values [1, N, heads, width] of each sequence's own source."""
        out = query.new_zeros(1, query.shape[2], query.shape[1], query.shape[3])
        for span in self.spans:
            keys, values = span.inputs.keys[layer][None], span.inputs.values[layer][None]
            size = 1 if self._nodewise else span.last - span.first
            for first in range(span.first, span.last, size):
                rows = slice(first, first + size)
                out[:, rows] = attended(query[:, :, rows], keys, values, None, **how).transpose(1, 2)
        return out


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention of the queries [B, heads, n, width] to [B, key heads, L, width]: [B, heads, n, value
    width].

    mask: as `Mask.added` gives it; bias: [B, heads, n, L], added to the logits; softcap: logits x become
    softcap * tanh(x / softcap) before; sinks: [heads], a logit for attending to nothing.
    """
    batch, heads, n, width = query.shape
    shared = heads // key.shape[1]  # query heads that share a key head lie side by side
    packed = query.reshape(batch, key.shape[1], shared * n, width)
    if bias is not None:
        bias = bias.reshape(*packed.shape[:3], -1).to(query.dtype)
        mask = bias if mask is None else bias + mask
    if softcap is None and sinks is None:
        out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
        return out.reshape(batch, heads, n, -1)
    logits = (packed @ key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits + mask
    if sinks is not None:
        nothing = sinks.to(logits.dtype).reshape(-1, shared, 1).repeat_interleave(n, 1)
        logits = torch.cat((logits, nothing.expand(batch, -1, -1, 1)), 3)
    weights = softmax(logits, 3, dtype=torch.promote_types(logits.dtype, torch.float32)).to(value.dtype)
    return (weights[..., : key.shape[2]] @ value).reshape(batch, heads, n, -1)


_running: ContextVar[Pass] = ContextVar("the pass that a model is called for")


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' models call. Windows are in the mask."""
    running = _running.get()
    how: dict[str, Any] = {"scaling": scaling, "softcap": softcap, "sinks": s_aux}
    if not key.shape[2]:  # nothing is where a decoder would have what it knows of its source
        return running.attend_source(module.layer_idx, query, **how), None
    if getattr(module, "has_relative_attention_bias", False):
        running.relate(module)
    if (position_bias is not None and not running.relates) or not isinstance(attention_mask, Mask):
        kind = "masks of its own making" if position_bias is None else "biases"
        raise ConfigError(f"{type(module).__name__} attends with {kind}, which this target does not support")
    return running.attend(module.layer_idx, query, key, value, attention_mask, **how), None


def _mask(*, mask_function: MaskFunction, **_: Any) -> Mask:
    """The mask function that transformers' models call, once per pass and kind of layer."""
    return _running.get().mask(mask_function)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


class Switch:
    """Has a model use our attention and packed weights while a pass of ours runs, and its own at all other
    times.

    alike: the model's experts, if it has any, are then computed for each row alone.
    """

    def __init__(self, model: torch.nn.Module, *, alike: bool) -> None:
        configs = (getattr(module, "config", None) for module in model.modules())
        found = {id(config): config for config in configs if hasattr(config, "_attn_implementation")}
        self._configs = list(found.values())
        self._ours = {"_attn_implementation_internal": NAME}
        if alike:
            self._ours["_experts_implementation_internal"] = "batched_mm"
        self.packed = Packed(model)

    @contextmanager
    def on(self, running: Pass) -> Iterator[None]:
        """Inside, the model's calls belong to this pass."""
        own = [{name: getattr(config, name) for name in self._ours} for config in self._configs]
        token = _running.set(running)
        try:
            for config in self._configs:
                vars(config).update(self._ours)
            with self.packed.on():
                yield
        finally:
            for config, settings in zip(self._configs, own, strict=True):
                vars(config).update(settings)
            _running.reset(token)
