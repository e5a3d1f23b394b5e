"""Tiny random models and packed drafts for the tests of the native target."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.core import NOTHING, Draft, Tree, Verdict, View
from paceline.kernels.packing import FORMATS, pack
from paceline.models.config import ModelConfig
from paceline.models.gguf_file import TENSOR_TYPES
from paceline.targets.weights import PackedWeights, aligned

Row = tuple[int, Sequence[int], int, int, Tree]
"""slot, history, start, end, tree: what one row of a pass is made from."""

CONFIG = ModelConfig(
    architecture="llama",
    name="tiny random",
    hidden=96,
    layers=3,
    heads=6,
    kv_heads=2,
    head_dim=32,
    ffn=160,
    vocab_size=203,  # not a multiple of 16: the last block is partly empty
    context=512,
    rope_theta=10000.0,
    rope_interleaved=True,
    query_scale=32**-0.5,
    norm_eps=1e-5,
    tied=True,
)


WIDE = replace(CONFIG, hidden=256, head_dim=64, heads=4, ffn=256, name="tiny random of whole superblocks")
"""As CONFIG, with the widths that K-quants need."""


def random_blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A GGUF's blocks, or the bytes of its floats, uint8 [rows, bytes per row]: random numbers whose weights
    have a deviation of about 1 / sqrt(columns)."""
    format = FORMATS[kind]
    if format.holds_floats:
        weights = (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
        if kind == "BF16":
            return np.ascontiguousarray(weights.view(np.uint16)[:, 1::2]).view(np.uint8)
        return weights.astype(np.float16 if kind == "F16" else np.float32).view(np.uint8)
    blocks = columns // format.span
    spread = 2**format.bits / np.sqrt(12) * (32 if format.part == 32 else 74 if format.part else 1)
    scale = rng.uniform(0.5, 1.5, (rows, blocks, 1)) / np.sqrt(columns) / spread
    # Halves, then the bytes between them: every bit pattern of these is valid.
    halves = [scale, (1 if format.part else -1) * 2 ** (format.bits - 1) * scale][: 1 + format.minima]
    parts = [half.astype(np.float16).view(np.uint8) for half in halves]
    size = _BLOCK_BYTES[kind] - 2 * len(halves)
    parts.insert(0 if kind == "Q6_K" else len(parts), rng.integers(0, 256, (rows, blocks, size), np.uint8))
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


_BLOCK_BYTES = {type.name: type.bytes for type in TENSOR_TYPES.values()}


def random_weights(
    kinds: Sequence[str] = ("Q4_1", "Q8_0", "Q4_0"), seed: int = 0, config: ModelConfig = CONFIG
) -> PackedWeights:
    """A model of `config` whose matrices take the given types in turn."""
    rng, c = np.random.default_rng(seed), config
    shapes = {"token_embd": (c.vocab_size, c.hidden)}
    for i in range(c.layers):
        at = f"blk.{i}."
        kv = c.kv_heads * c.head_dim
        shapes |= {at + "attn_q": (c.heads * c.head_dim, c.hidden), at + "attn_k": (kv, c.hidden)}
        shapes |= {at + "attn_v": (kv, c.hidden), at + "attn_output": (c.hidden, c.heads * c.head_dim)}
        shapes |= {at + "ffn_gate": (c.ffn, c.hidden), at + "ffn_up": (c.ffn, c.hidden)}
        shapes |= {at + "ffn_down": (c.hidden, c.ffn)}
    tensors: dict[str, Any] = {}
    for place, (name, (rows, columns)) in enumerate(shapes.items()):
        kind = kinds[place % len(kinds)]
        tensors[name + ".weight"] = aligned(pack(kind, random_blocks(kind, rows, columns, rng)))
        tensors[name + ".weight.type"] = kind
    norms = [f"blk.{i}.{part}_norm" for i in range(c.layers) for part in ("attn", "ffn")]
    for name in [*norms, "output_norm"]:
        tensors[name + ".weight"] = aligned(rng.uniform(0.5, 2, c.hidden).astype(np.float32).view(np.uint8))
    return PackedWeights(c, "{}", tensors)


def draft_of(rows: Sequence[Row]) -> Draft:
    slots, histories, starts, ends, trees = zip(*rows, strict=True)
    lengths = [len(history) for history in histories]
    none: list[Any] = [None] * len(rows)
    view = View(slots, histories, starts, ends, none, [0] * len(rows), lengths, ["none"] * len(rows))
    return Draft.pack(view, trees)


def read(target: Any, slot: int, tokens: Sequence[int], chunk: int = 64) -> None:
    """Put all tokens into the target's cache."""
    for start in range(0, len(tokens), chunk):
        end = min(start + chunk, len(tokens))
        history = [*tokens, 0] if end == len(tokens) else tokens  # nothing is drawn here
        step(target, [(slot, history, start, end, NOTHING)])


def step(
    target: Any, rows: Sequence[Row], paths: Sequence[Sequence[int]] | None = None
) -> NDArray[np.float32]:
    """One pass and its commit. paths: per row the accepted nodes of its tree, by default none.

    Returns the logits of the scored nodes.
    """
    draft = draft_of(rows)
    logits: NDArray[np.float32] = target.forward(draft, frozenset()).logits.copy()
    kept = [
        [draft.roots[row] + 1 + node for node in path] for row, path in enumerate(paths or [()] * len(rows))
    ]
    target.commit(draft, Verdict(kept, [-1] * len(rows)))
    return logits


def random_tree(rng: random.Random, nodes: int, vocab: int, chain: bool = False) -> Tree:
    parents = [i - 1 if chain else rng.randrange(-1, i) for i in range(nodes)]
    return Tree([rng.randrange(vocab) for _ in range(nodes)], parents)


def path_to(tree: Tree, node: int) -> list[int]:
    """Indices of the tree's nodes from below the root down to `node`."""
    path = []
    while node >= 0:
        path.append(node)
        node = tree.parents[node]
    return path[::-1]
