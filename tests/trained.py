"""What tests of trained drafters share: random weights, tables to draft for, and how well that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.core import Draft, Drafter, Scores
from paceline.drafters import load
from paceline.engine import Engine
from paceline.kernels.packing import Embedding, dequantise, pack, quantise_weights
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.targets.weights import aligned
from tests.toys import SketchingTable

TINY: dict[str, Any] = {
    "hidden": 96,
    "ffn": 160,
    "heads": 6,
    "kv_heads": 2,
    "head_dim": 32,
    "norm_eps": 1e-5,
    "vocab_size": 203,
    "draft_vocab_size": 75,  # not a multiple of 16
    "context": 512,
    "rope_theta": 10000.0,
    "verifier": "tiny random",
}
"""Of drafters for `tests.native.models.CONFIG`."""

REAL: dict[str, Any] = {
    "hidden": 576,
    "ffn": 1536,
    "heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "draft_vocab_size": 8192,
    "context": 8192,
    "rope_theta": 100000.0,
    "verifier": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""What is different in drafters for SmolLM2-135M."""


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, *, positive: bool = True
) -> dict[str, NDArray[np.float32]]:
    """Random weights, rounded as the kernels round theirs, so that both run the same numbers. positive:
    vectors are norms' weights."""
    rng = np.random.default_rng(seed)

    def drawn(shape: tuple[int, ...]) -> NDArray[np.float32]:
        if len(shape) > 1:
            return rounded((rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32))
        return (rng.uniform(0.5, 2, shape) if positive else rng.standard_normal(shape)).astype(np.float32)

    return {name: drawn(shape) for name, shape in shapes.items()}


def random_ids(vocab_size: int, draft_vocab_size: int, seed: int) -> NDArray[np.int64]:
    """So many of the target's tokens, ascending."""
    ids: NDArray[np.int64] = np.sort(np.random.default_rng(seed).permutation(vocab_size)[:draft_vocab_size])
    return ids


def rounded(values: NDArray[np.float32], kind: str = "Q8_0") -> NDArray[np.float32]:
    """The nearest weights that a type holds."""
    rows, columns = len(values), values.size // len(values)
    flat = values.reshape(rows, columns)
    return dequantise(kind, rows, columns, pack(kind, quantise_weights(flat, kind))).reshape(values.shape)


def embedding_of(values: NDArray[np.float32]) -> Embedding:
    """Packed embeddings of float32 [V, hidden], for a target that has none of its own."""
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    return Embedding("F32", aligned(pack("F32", raw)), *values.shape)


def answers(
    target: SketchingTable,
    drafter: Drafter | None,
    temperature: float,
    prompts: int = 12,
    params: Mapping[str, Any] | None = None,
    tokens: int = 0,
    **options: Any,
) -> list[Completion]:
    """Of random prompts of 3, 20 and 37 tokens below `tokens`, 0: all; drafter None: plain decoding's."""
    engine = Engine(target, {"d": drafter or load("none", target.info)}, drafter="d", **options)
    rng = np.random.default_rng(1)
    below = tokens or target.info.vocab_size
    texts = [rng.integers(below, size=3 + 17 * (i % 3)).tolist() for i in range(prompts)]
    asked = [
        SamplingParams(seed=seed, temperature=temperature, max_tokens=60, **(params or {}))
        for seed in range(prompts)
    ]
    done = engine.generate(texts, asked)
    assert engine.load.draft_failures == {}
    return done


def tokens_per_pass(done: Sequence[Completion]) -> float:
    """Over all answers."""
    return sum(len(one.token_ids) for one in done) / sum(one.stats.passes for one in done)


def same(left: Sequence[Completion], right: Sequence[Completion]) -> bool:
    """Whether both have the same tokens."""
    return [one.token_ids for one in left] == [one.token_ids for one in right]


class Late(SketchingTable):
    """A target that shows each hidden state one position too late."""

    def __init__(self, like: SketchingTable) -> None:
        super().__init__()
        self.table = like.table

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """As the other, but for the features."""
        scores = super().forward(draft, taps)
        late = {tap: np.roll(states, 1, axis=0) for tap, states in scores.features.items()}
        return replace(scores, features=late)
