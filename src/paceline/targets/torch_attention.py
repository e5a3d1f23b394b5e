"""Attention of transformers' models over our own cache, each node along its own path.

transformers' models look up their attention function and their mask function by a name in their config. Under
NAME stand ours. During a `Pass` of ours a model is called with packed rows, [1, N]; its mask function says
which positions may see which (all before, a window, a chunk), and we hold that against the paths of the
drafted trees; its layers hand us queries, keys and values, and we keep the latter in the sequences' caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from paceline.errors import ConfigError

NAME = "paceline"
GROWTH = 1.5
"""A cache that is too small is made so many times as large."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' (batch, head, query position, key position) -> whether it is seen, elementwise."""


class Cached:
    """One sequence's keys and values, layer by layer: [heads, capacity, width], of which `length` entries are
    committed, in the order of their positions. Behind them lie those of the last pass."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def write(self, layer: int, entry: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values [heads, n, width] at the entries from `entry` on; all of them up to there."""
        end = entry + keys.shape[1]
        for store, new in ((self._keys, keys), (self._values, values)):
            held = store.get(layer)
            if held is None or held.shape[1] < end:
                room = new.new_empty(new.shape[0], int(end * GROWTH), new.shape[2])
                if held is not None:
                    room[:, :entry] = held[:, :entry]
                held = store[layer] = room
            held[:, entry:end] = new
        return self._keys[layer][:, :end], self._values[layer][:, :end]

    def keep(self, known: int, path: Sequence[int]) -> None:
        """Commit the first `known` entries of the last pass and those of the path, counted from its first."""
        end = self.length + known
        places = [self.length + node for node in path]
        self.length = end + len(path)
        if places == list(range(end, self.length)):
            return
        for store in (self._keys, self._values):
            for held in store.values():
                held[:, end : self.length] = held[:, places]

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """The committed keys and values of a layer. For tests."""
        return self._keys[layer][:, : self.length], self._values[layer][:, : self.length]


@dataclass(frozen=True, slots=True)
class Source:
    """What a decoder attends to beside its text: keys and values [heads, E, width] of each layer."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Span:
    """The nodes of one sequence in a pass: its packed rows [first, last).

    entry      where in the sequence's cache the first one's keys and values go
    positions  int64 [entry + n]: of all entries up to the last node's
    visible    bool [n, entry + n]: the entries on each node's own path, itself included
    inputs     what the sequence has beside tokens: the `Source` of an encoder-decoder model
    """

    cached: Cached
    first: int
    last: int
    entry: int
    positions: Tensor
    visible: Tensor
    inputs: Any = None


Masks = Sequence[Tensor | None]
"""One per span, bool [n, entries]; None where every node sees every entry."""


@dataclass
class Pass:
    """One call of a model. nodewise: attend to one node after the other, in shapes that follow from the
    node's position alone."""

    spans: Sequence[Span]
    nodewise: bool
    layers: set[int] = field(default_factory=set)
    biases: Sequence[Tensor] | None = None

    def masks(self, function: MaskFunction) -> Masks:
        """What each node sees, under a mask function of the model."""
        return [self._mask(span, function) for span in self.spans]

    def _mask(self, span: Span, function: MaskFunction) -> Tensor | None:
        seen = span.visible
        if function is not causal_mask_function:  # which paths keep to by themselves
            at = span.positions
            zero = torch.zeros((), dtype=torch.int64, device=at.device)
            seen = seen & function(zero, zero, at[span.entry :, None], at[None, :])
        return None if not self.nodewise and bool(seen.all()) else seen

    def relate(self, module: Any) -> None:
        """Take over what a module of T5's kind adds to logits by how far apart two tokens are: per span
        [heads, n, entries]. The layers behind it add the same."""
        longest = max(len(span.positions) for span in self.spans)
        by_distance = module.compute_bias(1, longest, past_seen_tokens=longest - 1)[0, :, 0].flip(-1)
        self.biases = []
        for span in self.spans:
            apart = span.positions[span.entry :, None] - span.positions[None, :]
            self.biases.append(by_distance[:, apart.clamp(min=0)])  # what lies ahead is not seen

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, masks: Masks, **how: Any
    ) -> Tensor:
        """Keep the keys and values [1, heads, N, width]; the attended values [1, N, query heads, width]."""
        if layer in self.layers:
            raise ConfigError(f"layer {layer} of this model attends twice in a pass, which is not supported")
        self.layers.add(layer)
        out = value.new_zeros(query.shape[2], query.shape[1], value.shape[3])
        for span, mask, bias in zip(self.spans, masks, self.biases or repeat(None), strict=False):
            rows = slice(span.first, span.last)
            keys, values = span.cached.write(layer, span.entry, key[0, :, rows], value[0, :, rows])
            queries = query[0, :, rows]
            if self.nodewise:
                assert mask is not None
                for node, seen in enumerate(mask):
                    entries = seen.nonzero()[:, 0]
                    own = queries[:, node : node + 1]
                    added = None if bias is None else bias[:, node : node + 1, entries]
                    found = attended(own, keys[:, entries], values[:, entries], None, bias=added, **how)
                    out[span.first + node] = found[:, 0]
            else:
                out[rows] = attended(queries, keys, values, mask, bias=bias, **how).transpose(0, 1)
        return out[None]

    def attend_source(self, layer: int, query: Tensor, **how: Any) -> Tensor:
        """The attended values [1, N, heads, width] of each sequence's own source."""
        out = query.new_zeros(query.shape[2], query.shape[1], query.shape[3])
        for span in self.spans:
            keys, values = span.inputs.keys[layer], span.inputs.values[layer]
            size = 1 if self.nodewise else span.last - span.first
            for first in range(span.first, span.last, size):
                rows = slice(first, first + size)
                out[rows] = attended(query[0, :, rows], keys, values, None, **how).transpose(0, 1)
        return out[None]


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
    """Softmax attention of the queries [heads, n, width] to [key heads, L, width]: [heads, n, value width].

    mask: bool [n, L]; bias: [heads, n, L], added to the logits; softcap: logits x become
    softcap * tanh(x / softcap) before; sinks: [heads], a logit for attending to nothing.
    """
    heads, n, width = query.shape
    shared = heads // key.shape[0]  # query heads that share a key head lie side by side
    packed = query.reshape(key.shape[0], shared * n, width)
    if mask is not None:
        mask = mask.repeat(shared, 1)
    if bias is not None:
        bias = bias.reshape(packed.shape[0], packed.shape[1], -1).to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if softcap is None and sinks is None:
        out = scaled_dot_product_attention(
            packed[None], key[None], value[None], attn_mask=mask, scale=scaling
        )
        return out.reshape(heads, n, -1)
    logits = (packed @ key.transpose(1, 2)) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if bias is None else logits + mask
    if sinks is not None:
        nothing = sinks.to(logits.dtype).reshape(-1, shared, 1).repeat_interleave(n, 1)
        logits = torch.cat((logits, nothing), 2)
    weights = softmax(logits, 2, dtype=torch.promote_types(logits.dtype, torch.float32)).to(value.dtype)
    return (weights[..., : key.shape[1]] @ value).reshape(heads, n, -1)


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
    if (position_bias is not None and running.biases is None) or not isinstance(attention_mask, list):
        kind = "masks of its own making" if position_bias is None else "biases"
        raise ConfigError(f"{type(module).__name__} attends with {kind}, which this target does not support")
    return running.attend(module.layer_idx, query, key, value, attention_mask, **how), None


def _mask(*, mask_function: MaskFunction, **_: Any) -> Masks:
    """The mask function that transformers' models call, once per pass and kind of layer."""
    return _running.get().masks(mask_function)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


class Switch:
    """Has a model use our attention while a pass of ours runs, and its own at all other times.

    alike: the model's experts, if it has any, are then computed for each row alone.
    """

    def __init__(self, model: torch.nn.Module, *, alike: bool) -> None:
        configs = (getattr(module, "config", None) for module in model.modules())
        found = {id(config): config for config in configs if hasattr(config, "_attn_implementation")}
        self._configs = list(found.values())
        self._ours = {"_attn_implementation_internal": NAME}
        if alike:
            self._ours["_experts_implementation_internal"] = "batched_mm"

    @contextmanager
    def on(self, running: Pass) -> Iterator[None]:
        """Inside, the model's calls belong to this pass."""
        own = [{name: getattr(config, name) for name in self._ours} for config in self._configs]
        token = _running.set(running)
        try:
            for config in self._configs:
                vars(config).update(self._ours)
            yield
        finally:
            for config, settings in zip(self._configs, own, strict=True):
                vars(config).update(settings)
            _running.reset(token)


def ancestors(parents: Sequence[int]) -> Tensor:
    """bool [n, n]: row i holds node i and the nodes above it. parents: -1, or an earlier node."""
    if all(parent == node - 1 for node, parent in enumerate(parents)):
        return torch.ones(len(parents), len(parents), dtype=torch.bool).tril_()
    above = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            above[node] |= above[parent]
    return above


def blocks(offsets: Sequence[int], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """The packed nodes in blocks of `size`: for each block (row, first node, last node) of the rows in it."""
    for start in range(0, offsets[-1], size):
        yield [
            (row, max(first, start), min(last, start + size))
            for row, (first, last) in enumerate(pairwise(offsets))
            if first < start + size and last > start
        ]
