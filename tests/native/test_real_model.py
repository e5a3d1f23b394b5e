"""The native kernels on the weights of SmolLM2-135M: invariance bit for bit, and start-up time."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
import pytest

from paceline.core import NOTHING, Tree
from paceline.models.registry import resolve
from paceline.targets.native import NativeTarget
from paceline.targets.weights import load_weights
from tests.native.models import Row, path_to, random_tree, read, step
from tests.real_model import MODEL, prompts, target, tokenizer

pytestmark = pytest.mark.model


def text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += tokenizer().apply_chat_template(rng.choice(prompts(72)))
    return tokens[:length]


def one_by_one(model: NativeTarget, history: Sequence[int], start: int) -> np.ndarray:
    """Logits behind history[:-1], fed token by token from `start` on."""
    for end in range(start + 1, len(history) + 1):
        logits = step(model, [(99, history[:end], end - 1, end, NOTHING)])
    return logits[0]


def check(threads: int, sizes: Sequence[int], checked_nodes: int) -> int:
    """Compare nodes of chains and trees, with and without neighbours, with passes over one row."""
    model, plain = target(threads), target(1)
    history = text(1, 50)
    neighbours = {1: text(2, 70), 2: text(3, 21)}
    read(model, 0, history[:-1])
    compared = 0
    for size in sizes:
        rng = random.Random(size)
        tree = random_tree(rng, size - 1, 2000, chain=size % 2 == 0)
        rows: list[Row] = [(0, history, 49, 50, tree)]
        if size % 3:
            rows.append((1, neighbours[1], 0, 70, random_tree(rng, 3, 2000)))
        if size % 4 == 0:
            rows.insert(0, (2, neighbours[2], 0, 21, Tree.chain([5, 6])))
        logits = step(model, rows)
        first = 3 if size % 4 == 0 else 0  # behind the root and the two drafted nodes of the row before
        for node in {-1, size - 2, *rng.choices(range(-1, size - 1), k=checked_nodes)}:
            path = [tree.tokens[i] for i in path_to(tree, node)]
            read(plain, 99, history[:-1])
            np.testing.assert_array_equal(logits[first + 1 + node], one_by_one(plain, history + path, 49))
            plain.release([99])
            compared += 1
        model.release([0, 1, 2])
        read(model, 0, history[:-1], chunk=size)
    model.release([0])
    return compared


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_logits_do_not_depend_on_the_other_rows(threads: int) -> None:
    assert check(threads, [1, 2, 3, 8, 13, 16, 33], 1) >= 14


@pytest.mark.prove
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_one_to_thirty_three_nodes(threads: int) -> None:
    assert check(threads, range(1, 34), 8) > 200


def test_the_cache_after_random_walks_equals_a_fresh_one() -> None:
    walked, fresh = target(2), target(1)
    rng = random.Random(4)
    history = text(5, 30)
    read(walked, 7, history[:-1])
    moved = 0
    for _ in range(25):
        tree = random_tree(rng, rng.randrange(1, 12), 2000, chain=rng.random() < 0.3)
        path = path_to(tree, rng.randrange(-1, len(tree.tokens)))
        moved += path != list(range(len(path)))
        step(walked, [(7, list(history), len(history) - 1, len(history), tree)], [path])
        history += [tree.tokens[i] for i in path] + [rng.randrange(2000)]
    assert moved > 5
    read(fresh, 7, history[:-1], chunk=50)
    for layer in (0, 14, 29):
        for found, wanted in zip(walked.read_cache(7, layer), fresh.read_cache(7, layer), strict=True):
            np.testing.assert_array_equal(found, wanted)
    walked.release([7])
    fresh.release([7])


def test_a_second_start_takes_less_than_a_second() -> None:
    path = resolve(MODEL)
    load_weights(path)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        NativeTarget.load(path)
        times.append(time.perf_counter() - begin)
    assert min(times) < 1
