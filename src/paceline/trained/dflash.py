"""A DFlash drafter on the CPU kernels: their matrix products, and attention in NumPy, for it looks both ways.

Of each sequence it keeps the keys and values that its layers make of the target's hidden states, and never
anything of a block. Matrices are rounded to 8 bits with a scale per 32, Q8_0; the embeddings are the
target's, and so is the head where the drafter has none. `paceline.trained.dflash_reference` says what is
computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from paceline.kernels.packing import Embedding
from paceline.models.dflash_folder import HEAD, DFlashWeights
from paceline.models.drafter_folder import Floats
from paceline.trained._fit import Product, check_target, check_widths, head_rows, product
from paceline.trained.dflash_reference import rotate
from paceline.trained.eagle3_reference import norm


class NativeDFlash:
    """See `paceline.drafters._blocks.BlockModel`. Not for use from two threads at once.

    A sequence's positions count from the first whose hidden states were given; only their differences matter.
    """

    def __init__(
        self, weights: DFlashWeights, embedding: Embedding, head: Embedding, layers: int, *, cache_tokens: int
    ) -> None:
        """embedding, head: the target's; layers: how many it has; cache_tokens: positions of all sequences
        together.

        Raises IncompatibleDrafter for a drafter that was not trained for such a target.
        """
        config = weights.config
        _check(weights, embedding)
        self.taps = tuple(f"hidden.{id}" for id in config.layers_of(layers))
        self.token_ids = weights.token_ids
        self.depths = config.depths
        self.cache_tokens = cache_tokens
        self._config, self._embedding = config, embedding
        self._mask = embedding.row(config.mask_token)
        found = weights.tensors
        self._norms = {name: tensor for name, tensor in found.items() if tensor.ndim == 1}
        self._fc = product(found["fc.weight"])
        self._layers = [self._layer(weights, number) for number in range(config.layers)]
        self._context = product(
            np.concatenate([found[name] for layer in self._layers for name in layer.keys_values])
        )
        self._head = _head(weights, head)
        self._texts: dict[int, list[_Cache]] = {}  # by slot, for each layer

    def length(self, slot: int) -> int:
        """Positions of a sequence whose hidden states were given."""
        return self._texts[slot][0].length if slot in self._texts else 0

    def extend(self, slots: Sequence[int], counts: Sequence[int], hidden_states: Sequence[Floats]) -> None:
        """Take in the hidden states of further positions, `counts[i]` of sequence `slots[i]`, which may be a
        new one. hidden_states: float32 [sum of counts, hidden] for each of `taps`."""
        config = self._config
        joined = np.ascontiguousarray(np.concatenate(hidden_states, axis=-1))
        injected = norm(self._fc(joined), self._norms["hidden_norm.weight"], config.norm_eps)
        made = self._context(injected).reshape(
            len(injected), config.layers, 2, config.kv_heads, config.head_dim
        )
        first = 0
        for slot, count in zip(slots, counts, strict=True):
            caches = self._texts.setdefault(
                slot, [_Cache(config.kv_heads, config.head_dim) for _ in self._layers]
            )
            for number, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
                own = made[first : first + count, number]
                positions = cache.length + np.arange(count)
                keys = rotate(layer.normed(own[:, 0], "k_norm"), positions, config.frequencies)
                cache.put(keys, own[:, 1])
                cache.length += count
            first += count

    def forward(self, slots: Sequence[int], tokens: Sequence[int]) -> Floats:
        """Logits float32 [B, depths, D] of what is drafted behind each sequence's next token, which is not in
        the cache. The cache does not change."""
        read = self._denoised(slots, tokens)
        return self._head(read).reshape(len(slots), self.depths, -1)

    def _denoised(self, slots: Sequence[int], tokens: Sequence[int]) -> Floats:
        """What the head reads of each drafted token's slot, float32 [B * depths, hidden]."""
        config, block = self._config, self._config.block
        embedded = np.empty((len(slots), block, config.hidden), np.float32)
        embedded[:, 0] = [self._embedding.row(token) for token in tokens]
        embedded[:, 1:] = self._mask
        x: Floats = embedded.reshape(-1, config.hidden)
        for number, layer in enumerate(self._layers):
            read = layer.normed(x, "input_layernorm", "")
            x = x + layer.around("attention", read, partial(self._attend, slots, number))
            read = layer.normed(x, "post_attention_layernorm", "")
            x = x + layer.around("mlp", read, layer.mlp)
        drafted = x.reshape(len(slots), block, -1)[:, block - self.depths :].reshape(-1, config.hidden)
        return norm(drafted, self._norms["norm.weight"], config.norm_eps)

    def _attend(self, slots: Sequence[int], number: int, read: Floats) -> Floats:
        """What attention adds to blocks, [B * block, hidden]: it sees each one's text and itself."""
        config, block, layer = self._config, self._config.block, self._layers[number]
        q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        made = layer.qkv(read).reshape(len(slots), block, -1)
        attended = np.empty((len(slots), block, q_width), np.float32)
        scale = np.float32(config.head_dim**-0.5)
        for row, slot in enumerate(slots):
            cache = self._texts[slot][number]
            positions = cache.length + np.arange(block)
            q, k, v = (
                part.reshape(block, -1, config.head_dim)
                for part in np.split(made[row], (q_width, q_width + kv_width), axis=-1)
            )
            q = rotate(layer.normed(q, "q_norm"), positions, config.frequencies)
            k = rotate(layer.normed(k, "k_norm"), positions, config.frequencies)
            cache.put(k, v)
            attended[row] = cache.attend(q * scale, cache.length + block)
        return layer.output(attended.reshape(-1, q_width))

    def _layer(self, weights: DFlashWeights, number: int) -> Layer:
        return Layer(weights, number)

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences. One that was never seen is no error."""
        for slot in slots:
            self._texts.pop(slot, None)


class Layer:
    """One layer's matrices, those that read the same put together, and its norms."""

    def __init__(self, weights: DFlashWeights, number: int) -> None:
        at, found = f"layers.{number}.", weights.tensors

        def stacked(*names: str) -> Product:
            return product(np.concatenate([found[f"{at}{name}.weight"] for name in names]))

        self.keys_values = [f"{at}self_attn.{name}_proj.weight" for name in "kv"]
        self.qkv = stacked(*(f"self_attn.{name}_proj" for name in "qkv"))
        self.output = stacked("self_attn.o_proj")
        self.gate_up = stacked("mlp.gate_proj", "mlp.up_proj")
        self.down = stacked("mlp.down_proj")
        self._norms = {name.removeprefix(at): part for name, part in found.items() if name.startswith(at)}
        self._eps = weights.config.norm_eps

    def normed(self, x: Floats, name: str, within: str = "self_attn.") -> Floats:
        """Behind one of its norms."""
        return norm(x, self._norms[f"{within}{name}.weight"], self._eps)

    def mlp(self, read: Floats) -> Floats:
        """The gated feed-forward part."""
        gate, up = np.split(self.gate_up(read), 2, axis=-1)
        return self.down(gate / (1 + np.exp(-gate)) * up)

    def around(self, name: str, read: Floats, inner: Product) -> Floats:
        """What a part of the layer, "attention" or "mlp", makes of blocks [B * block, hidden]."""
        return inner(read)


class _Cache:
    """Keys and values of one sequence and layer, float32 [kv_heads, room, dim] each. What is put behind
    `length` counts only until something else is put there."""

    def __init__(self, kv_heads: int, dim: int) -> None:
        self.length = 0
        self._keys, self._values = (np.empty((kv_heads, 0, dim), np.float32) for _ in range(2))

    def put(self, keys: Floats, values: Floats) -> None:
        """[n, kv_heads, dim] each, from `length` on."""
        end = self.length + len(keys)
        if end > self._keys.shape[1]:
            self._keys, self._values = (
                np.concatenate([part, np.empty_like(part, shape=(len(part), end, part.shape[2]))], axis=1)
                for part in (self._keys, self._values)
            )
        self._keys[:, self.length : end] = keys.swapaxes(0, 1)
        self._values[:, self.length : end] = values.swapaxes(0, 1)

    def attend(self, q: Floats, end: int) -> Floats:
        """What scaled queries [n, heads, dim] attend to of the first `end` positions: [n, heads * dim]."""
        n, heads, dim = q.shape
        # Queries that share keys are rows of one product: [kv_heads, group * n, dim].
        grouped = (
            q.reshape(n, len(self._keys), -1, dim).transpose(1, 2, 0, 3).reshape(len(self._keys), -1, dim)
        )
        scores = grouped @ self._keys[:, :end].swapaxes(1, 2)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        attended: Floats = shares @ self._values[:, :end]
        return attended.reshape(heads, n, dim).swapaxes(0, 1).reshape(n, -1)


def _head(weights: DFlashWeights, head: Embedding) -> Product:
    """The drafter's own head; else the target's, or those rows of it that the drafter can propose."""
    if HEAD in weights.tensors:
        return product(weights.tensors[HEAD])
    return head_rows(head, weights.token_ids)


def _check(weights: DFlashWeights, embedding: Embedding) -> None:
    config = weights.config
    check_target(config.vocab_size, config.hidden, embedding)
    check_widths(
        {
            "hidden_size": config.hidden,
            "head_dim times its heads": config.heads * config.head_dim,
            "intermediate_size": config.ffn,
        }
    )
