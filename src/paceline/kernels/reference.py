"""The forward pass in NumPy: slow, short, and what the compiled kernels are checked against.

`Model` has the methods of the compiled `_kernels.Model`, so a target can run on either. It multiplies row
by row, so that here, too, a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.kernels.packing import FORMATS, GROUP, LANES, Floats, dequantise
from paceline.pages import PageBooks

Ints = NDArray[np.int32]


def quantise(x: Floats) -> Floats:
    """Round activations [..., K] to 8-bit numbers with one scale per 32, and back to float32."""
    grouped = x.reshape(*x.shape[:-1], -1, GROUP)
    largest = np.abs(grouped).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded: Floats = np.rint(grouped * inverse) * (largest / np.float32(127))
    return rounded.reshape(x.shape)


def rms_norm(x: Floats, weight: Floats, eps: float | np.floating) -> Floats:
    """Root mean square norm (Zhang & Sennrich, 2019) of the last axis, row by row."""
    mean = np.vecdot(x, x)[..., None] / np.float32(x.shape[-1])
    normed: Floats = x / np.sqrt(mean + np.float32(eps)) * weight
    return normed


class Matrix(NamedTuple):
    """values: float32 [rows, columns]; integers: whether the file holds integers with scales, which meet
    activations in 8 bits, or floats, which meet activations as they are."""

    values: Floats
    integers: bool


def multiply(x: Floats, weights: Matrix) -> Floats:
    """x [N, columns] times a matrix, row by row: [N, rows]."""
    return np.stack([weights.values @ row for row in (quantise(x) if weights.integers else x)])


class Model:
    """See `_kernels.pyi` for the methods. `exact_activations=True` leaves activations, keys and values in
    float32, the arithmetic that the law of a quantised model is measured against; its rows are not
    invariant."""

    isa = "reference"
    threads = 1

    def __init__(
        self,
        shape: Mapping[str, float],
        tensors: Mapping[str, Any],
        *,
        windows: Sequence[int],
        frequencies: NDArray[np.float64],
        cache_pages: int,
        max_positions: int,
        exact_activations: bool = False,
    ) -> None:
        self._hidden, self._ffn = int(shape["hidden"]), int(shape["ffn"])
        self._heads, self._kv_heads = int(shape["heads"]), int(shape["kv_heads"])
        self._dim, self._vocab = int(shape["head_dim"]), int(shape["vocab_size"])
        self._layers, self._eps = int(shape["layers"]), np.float32(shape["norm_eps"])
        self._gelu, self._takes_features = bool(shape["gelu"]), bool(shape["takes_features"])
        self._outputs = int(shape["outputs"])
        self._embedding_scale, self._query_scale = (
            np.float32(shape[f"{part}_scale"]) for part in ("embedding", "query")
        )
        self._exact = exact_activations
        self._stored = np.float32 if exact_activations else np.float16
        self._weights = {name: self._read(name, tensors) for name in tensors if not name.endswith(".type")}
        self._head = self._weights.get("output.weight", self._weights["token_embd.weight"])
        self._windows, self._frequencies = windows, frequencies
        self._books = PageBooks(cache_pages, LANES)
        self._lengths: dict[int, int] = {}  # committed tokens by slot
        stored = (self._layers, cache_pages * LANES, self._kv_heads, self._dim)
        # Keys and values; memory is taken as it is used.
        self._cache = [np.zeros(stored, self._stored) for _ in range(2)]
        self._last: tuple[Ints, Ints, list[NDArray[Any]]] | None = None

    def _read(self, name: str, tensors: Mapping[str, Any]) -> Any:
        """A Matrix, or the float32 values of a vector."""
        if name + ".type" not in tensors:
            return np.asarray(tensors[name]).view(np.float32)
        kv, q = self._kv_heads * self._dim, self._heads * self._dim
        read = self._hidden * (2 if f"{name.rpartition('.attn_')[0]}.token_norm.weight" in tensors else 1)
        rows, columns = {
            "token_embd": (self._vocab, self._hidden),
            "output": (self._outputs, self._hidden),
            "attn_q": (q, read),
            "attn_k": (kv, read),
            "attn_v": (kv, read),
            "attn_output": (self._hidden, q),
            "ffn_gate": (self._ffn, self._hidden),
            "ffn_up": (self._ffn, self._hidden),
            "ffn_down": (self._hidden, self._ffn),
        }[name.split(".")[-2]]
        kind = tensors[name + ".type"]
        integers = not FORMATS[kind].holds_floats
        return Matrix(dequantise(kind, rows, columns, np.asarray(tensors[name])), integers)

    def _multiply(self, x: Floats, weights: Matrix) -> Floats:
        return x @ weights.values.T if self._exact else multiply(x, weights)

    def _norm(self, x: Floats, name: str) -> Floats:
        """RMS norm of the last axis, where the model has one of this name."""
        if name not in self._weights:
            return x
        return rms_norm(x, self._weights[name], self._eps)

    def _heads_of(self, x: Floats, at: str, count: int) -> Floats:
        """A projection of x [N, hidden], with its bias and its norm, as [N, count, dim]."""
        projected = self._multiply(x, self._weights[at + ".weight"]) + self._weights.get(at + ".bias", 0)
        return self._norm(projected.reshape(len(x), count, self._dim), at + "_norm.weight")

    def _rotate(self, x: Floats, positions: Ints, layer: int) -> Floats:
        """Rotary positions (Su et al., 2021) on neighbouring pairs of x [N, heads, dim]."""
        angles = positions[:, None, None] * self._frequencies[int(self._windows[layer] > 0)]
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        even, odd = x[..., ::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)

    def forward(
        self,
        slots: Ints,
        offsets: Ints,
        starts: Ints,
        tokens: Ints,
        parents: Ints,
        positions: Ints,
        scored: Ints,
        logits: Floats,
        tap_layers: Sequence[int],
        taps: Sequence[Floats],
        features: Floats | None = None,
        pads: Floats | None = None,
    ) -> None:
        """One pass over packed rows."""
        if (features is not None) != self._takes_features:
            raise ValueError(f"this model takes {'' if self._takes_features else 'no '}features")
        self._pass(
            slots,
            offsets,
            starts,
            tokens,
            parents,
            positions,
            scored,
            logits,
            tap_layers,
            taps,
            features,
            pads,
        )

    def sketch(
        self,
        slots: Ints,
        offsets: Ints,
        starts: Ints,
        tokens: Ints,
        parents: Ints,
        positions: Ints,
        scored: Ints,
        logits: Floats,
        skipped: Sequence[int],
        sinks: int,
        recent: int,
        tap_layers: Sequence[int] = (),
        taps: Sequence[Floats] = (),
    ) -> None:
        """A pass without some layers, which sees the first and last pages of each row's cache only."""
        seen = []
        for start in starts.tolist():
            first = min(-(-sinks // LANES), start // LANES)
            last = max(first, max(0, start - recent) // LANES)
            seen.append(np.array([*range(first * LANES), *range(last * LANES, start)], int))
        self._pass(
            slots,
            offsets,
            starts,
            tokens,
            parents,
            positions,
            scored,
            logits,
            tap_layers,
            taps,
            skipped=set(skipped),
            seen=seen,
        )
        self._last = None

    def _pass(
        self,
        slots: Ints,
        offsets: Ints,
        starts: Ints,
        tokens: Ints,
        parents: Ints,
        positions: Ints,
        scored: Ints,
        logits: Floats,
        tap_layers: Sequence[int],
        taps: Sequence[Floats],
        features: Floats | None = None,
        pads: Floats | None = None,
        skipped: Container[int] = (),
        seen: Sequence[NDArray[Any]] | None = None,
    ) -> None:
        """seen: for each row the positions of its cache that are looked at; None: all."""
        for slot, start in zip(slots, starts, strict=True):
            if self.length(int(slot)) != start:
                raise ValueError(
                    f"slot {slot} holds {self.length(int(slot))} tokens, the draft starts at {start}"
                )
        ends = starts + np.diff(offsets)
        self._books.reserve(dict(zip(slots.tolist(), ends.tolist(), strict=True)))
        paths = _paths(parents, offsets)
        fresh = [
            np.zeros((self._layers, len(tokens), self._kv_heads, self._dim), self._stored) for _ in range(2)
        ]
        if pads is None:
            pads = np.empty((0, self._hidden), np.float32)
        known = tokens < self._vocab
        embedded = np.empty((len(tokens), self._hidden), np.float32)
        embedded[known] = self._weights["token_embd.weight"].values[tokens[known]] * self._embedding_scale
        embedded[~known] = pads[tokens[~known] - self._vocab]
        x = embedded if features is None else self._norm(features, "feature_norm.weight")
        for layer in range(self._layers + 1):
            for wanted, tap in zip(tap_layers, taps, strict=True):
                if wanted == layer:
                    tap[:] = x
            if layer < self._layers and layer not in skipped:
                x = self._layer(layer, x, embedded, slots, offsets, positions, paths, fresh, seen)
        for wanted, tap in zip(tap_layers, taps, strict=True):
            if wanted == self._layers + 1:
                tap[:] = self._norm(x, "output_norm.weight")
        if len(scored):
            logits[: len(scored)] = self._multiply(self._norm(x[scored], "output_norm.weight"), self._head)
        self._last = (slots, offsets, fresh)

    def _layer(
        self,
        layer: int,
        x: Floats,
        embedded: Floats,
        slots: Ints,
        offsets: Ints,
        positions: Ints,
        paths: list[list[int]],
        fresh: list[NDArray[Any]],
        looked_at: Sequence[NDArray[Any]] | None,
    ) -> Floats:
        at, n, window = f"blk.{layer}.", len(x), self._windows[layer]
        weights = {name[len(at) :]: part for name, part in self._weights.items() if name.startswith(at)}
        normed = self._norm(x, at + "attn_norm.weight")
        if "token_norm.weight" in weights:
            normed = np.concatenate([self._norm(embedded, at + "token_norm.weight"), normed], -1)
        q = self._heads_of(normed, at + "attn_q", self._heads)
        q = self._rotate(q, positions, layer) * self._query_scale
        k = self._heads_of(normed, at + "attn_k", self._kv_heads)
        fresh[0][layer] = self._rotate(k, positions, layer)
        fresh[1][layer] = self._heads_of(normed, at + "attn_v", self._kv_heads)
        attended = np.zeros((n, self._heads, self._dim), np.float32)
        for row, slot in enumerate(slots):
            places = self._places(int(slot), self.length(int(slot)))
            if looked_at is not None:
                places = places[looked_at[row]]
            cached = [part[layer, places] for part in self._cache]
            for node in range(offsets[row], offsets[row + 1]):
                keys, values = (
                    np.concatenate([cached[i], fresh[i][layer][paths[node]]])[-window:]  # 0: all of them
                    .astype(np.float32)
                    .repeat(self._heads // self._kv_heads, axis=1)
                    for i in range(2)
                )
                scores = (q[node] * keys).sum(-1)  # [positions, heads]
                shares = np.exp(scores - scores.max(0))
                attended[node] = (shares[..., None] * values).sum(0) / shares.sum(0)[:, None]
        attended = self._multiply(attended.reshape(n, -1), weights["attn_output.weight"])
        x = x + self._norm(attended, at + "post_attention_norm.weight")
        normed = self._norm(x, at + "ffn_norm.weight")
        gate = self._multiply(normed, weights["ffn_gate.weight"])
        gated = _activate(gate, self._gelu) * self._multiply(normed, weights["ffn_up.weight"])
        down = self._multiply(gated, weights["ffn_down.weight"])
        return x + self._norm(down, at + "post_ffw_norm.weight")

    def commit(self, known: Sequence[int], kept: Sequence[Sequence[int]]) -> None:
        """Keep the known nodes and the given path of every row of the last pass; give back pages that held
        only others."""
        if self._last is None:
            raise ValueError("commit without a forward")
        slots, offsets, fresh = self._last
        for row, slot in enumerate(slots):
            nodes = offsets[row] + np.array([*range(known[row]), *kept[row]], int)
            length = self.length(int(slot))
            places = self._places(int(slot), length + len(nodes))[length:]
            for part, new in zip(self._cache, fresh, strict=True):
                part[:, places] = new[:, nodes]
            self._lengths[int(slot)] = length + len(nodes)
            self._books.shrink(int(slot), length + len(nodes))
        self._last = None

    def release(self, slots: Sequence[int]) -> None:
        """Forget sequences."""
        for slot in slots:
            self._lengths.pop(slot, None)
        self._books.release(slots)

    def pages(self, slot: int) -> list[int]:
        """Pages full of committed tokens."""
        return self._books.of(slot)[: self.length(slot) // LANES]

    def adopt(self, slot: int, pages: Sequence[int]) -> None:
        """Begin a sequence with the tokens of these pages."""
        self._books.adopt(slot, pages)
        self._lengths[slot] = len(pages) * LANES

    def hold(self, pages: Sequence[int]) -> None:
        """Keep pages beyond their sequences."""
        self._books.hold(pages)

    def drop(self, pages: Sequence[int]) -> None:
        """Keep them no longer."""
        self._books.drop(pages)

    def length(self, slot: int) -> int:
        """Committed tokens."""
        return self._lengths.get(slot, 0)

    def _places(self, slot: int, length: int) -> NDArray[np.intp]:
        """Where the keys and values of the sequence's first tokens lie."""
        tokens = np.arange(length)
        return np.array(self._books.of(slot), np.intp)[tokens // LANES] * LANES + tokens % LANES

    def read_cache(self, slot: int, layer: int, keys: Floats, values: Floats) -> None:
        """Committed keys and values [length, kv_heads, head_dim]."""
        places = self._places(slot, self.length(slot))
        keys[:], values[:] = (part[layer, places] for part in self._cache)

    @property
    def free_pages(self) -> int:
        """Pages that nobody has."""
        return self._books.free


def _activate(gate: Floats, gelu: bool) -> Floats:
    """SiLU, x * sigmoid(x), or the tanh form of GELU (Hendrycks & Gimpel, 2016), which is x * sigmoid(z)."""
    z = np.float32(2 * np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3) if gelu else gate
    activated: Floats = gate / (1 + np.exp(np.minimum(-z, np.float32(88))))
    return activated


def _paths(parents: Ints, offsets: Ints) -> list[list[int]]:
    """For every node its ancestors inside its row and itself, root first."""
    paths: list[list[int]] = []
    for node, parent in enumerate(parents.tolist()):
        paths.append([*(paths[parent] if parent >= 0 else ()), node])
    return paths
