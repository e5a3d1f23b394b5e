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
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from paceline.errors import ConfigError
from paceline.targets.torch_cache import Pool
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


@dataclass(frozen=True, slots=True)
class Span:
    """The nodes of one sequence in a pass: its packed rows [first, last).

    entry      which of the sequence's entries holds the first one's keys and values
    places     int64 [entry + n]: where all entries up to the last node's are in the pool
    positions  int64 [entry + n]: of the same
    visible    bool [n, entry + n]: the entries on each node's own path, itself included
    inputs     what the sequence has beside tokens, such as the `Source` of an encoder-decoder model
    """

    first: int
    last: int
    entry: int
    places: NDArray[np.int64]
    positions: NDArray[np.int64]
    visible: NDArray[np.bool_]
    inputs: Any = None


class Mask(NamedTuple):
    """What nodes see. seen: bool [B, n, L]; None where all see everything."""

    seen: Tensor | None


class Pass:
    """One call of a model over parts of B sequences.

    They are attended to together, each padded to n nodes and L entries: no loop over sequences. nodewise:
    attend to one node after the other instead, in shapes that follow from the node's position alone. That is
    slow, and the reference of the other way.
    """

    def __init__(self, spans: Sequence[Span], pool: Pool, device: torch.device, *, nodewise: bool) -> None:
        self.spans = spans
        self._pool = pool
        self._nodewise = nodewise
        self._layers: set[int] = set()
        self._biases: Tensor | None = None  # [B, heads, n, L]
        nodes = max(span.last - span.first for span in spans)
        entries = max(len(span.places) for span in spans)
        places, positions = np.zeros((2, len(spans), entries), np.int64)
        visible = np.zeros((len(spans), nodes, entries), np.bool_)
        visible[:, :, 0] = True  # of nodes that only fill up, which would else see nothing
        rows = np.zeros((len(spans), nodes), np.int64)
        for number, span in enumerate(spans):
            count, end = span.visible.shape
            places[number, :end], positions[number, :end] = span.places, span.positions
            visible[number, :count, :end] = span.visible
            rows[number, :count] = range(span.first, span.last)
        found = [
            number * nodes + row for number, span in enumerate(spans) for row in range(len(span.visible))
        ]
        written = np.concatenate([span.places[span.entry :] for span in spans])
        at = np.stack([_padded(span.positions[span.entry :], nodes) for span in spans])
        self._all_seen = bool(visible.all()) and not nodewise
        first = int(places[0, 0])
        straight = len(spans) == 1 and bool((places[0] == np.arange(first, first + entries)).all())
        self._straight = slice(first, first + entries) if straight else None

        def there(values: Any) -> Tensor:
            return torch.as_tensor(values).to(device)

        self._places, self._positions, self._visible = there(places), there(positions), there(visible)
        self._rows, self._found = there(rows), there(np.array(found, np.int64))
        self._written, self._at = there(written), there(at)

    def mask(self, function: MaskFunction) -> Mask:
        """What each node sees, under a mask function of the model."""
        if function is causal_mask_function:  # which paths keep to by themselves
            return Mask(None if self._all_seen else self._visible)
        zero = torch.zeros((), dtype=torch.int64, device=self._at.device)
        return Mask(self._visible & function(zero, zero, self._at[:, :, None], self._positions[:, None, :]))

    def relate(self, module: Any) -> None:
        """Take over what a module of T5's kind adds to logits by how far apart two tokens are. The layers
        behind it add the same."""
        longest = self._places.shape[1]
        by_distance = module.compute_bias(1, longest, past_seen_tokens=longest - 1)[0, :, 0].flip(-1)
        apart = self._at[:, :, None] - self._positions[:, None, :]
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
        count = len(self._written)  # the rows behind only fill up
        keys, values = self._pool.write(layer, self._written, key[0, :, :count], value[0, :, :count])
        attend = self._one_by_one if self._nodewise else self._together
        found = attend(query[:, :, :count], keys, values, mask.seen, **how)
        if count == query.shape[2]:
            return found[None]
        out = found.new_zeros(1, query.shape[2], *found.shape[1:])
        out[0, :count] = found
        return out

    def _together(
        self, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, **how: Any
    ) -> Tensor:
        """[N, heads, width]: all sequences at a time."""
        if self._straight is not None:
            at: Any = self._straight
            keys, values = keys[None, at], values[None, at]
        else:
            keys, values = keys[self._places], values[self._places]
        if len(self.spans) > 1:
            query = query[0][:, self._rows].transpose(0, 1)
        found = attended(
            query, keys.transpose(1, 2), values.transpose(1, 2), seen, bias=self._biases, **how
        ).transpose(1, 2)
        return found.flatten(0, 1)[self._found] if len(self.spans) > 1 else found[0]

    def _one_by_one(
        self, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, **how: Any
    ) -> Tensor:
        """[N, heads, width]: every node by itself."""
        assert seen is not None
        found = []
        for number, span in enumerate(self.spans):
            for node in range(span.last - span.first):
                entries = seen[number, node].nonzero()[:, 0]
                places = self._places[number, entries]
                own = query[:, :, span.first + node, None]
                bias = None if self._biases is None else self._biases[number, None, :, node, None, entries]
                found.append(
                    attended(
                        own, keys[None, places].transpose(1, 2), values[None, places].transpose(1, 2), None,
                        bias=bias, **how,
                    )[0, :, 0]
                )  # fmt: skip
        return torch.stack(found)

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


def _padded(values: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.pad(values, (0, length - len(values)))


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

    mask: bool [B, n, L]; bias: [B, heads, n, L], added to the logits; softcap: logits x become
    softcap * tanh(x / softcap) before; sinks: [heads], a logit for attending to nothing.
    """
    batch, heads, n, width = query.shape
    shared = heads // key.shape[1]  # query heads that share a key head lie side by side
    packed = query.reshape(batch, key.shape[1], shared * n, width)
    if mask is not None:
        mask = mask.repeat(1, shared, 1)[:, None]
    if bias is not None:
        bias = bias.reshape(*packed.shape[:3], -1).to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if softcap is None and sinks is None:
        out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
        return out.reshape(batch, heads, n, -1)
    logits = (packed @ key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if bias is None else logits + mask
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


def ancestors(parents: Sequence[int]) -> NDArray[np.bool_]:
    """bool [n, n]: row i holds node i and the nodes above it. parents: -1, or an earlier node."""
    if all(parent == node - 1 for node, parent in enumerate(parents)):
        return np.tri(len(parents), dtype=np.bool_)
    above = np.eye(len(parents), dtype=np.bool_)
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
