"""The compiled forward pass against its NumPy reference, and its own promises: row invariance and a cache
that holds what a fresh pass would have put there."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from paceline import kernels
from paceline.core import LAST, NOTHING, Tree
from paceline.errors import CapacityError, ConfigError
from paceline.kernels.packing import FORMATS, TYPES, dequantise
from paceline.targets.native import NativeTarget
from tests.native.models import CONFIG, WIDE, Row, draft_of, path_to, random_tree, random_weights, read, step

V = CONFIG.vocab_size
COMPILED = [isa for isa in kernels.available() if isa != "reference"]
assert COMPILED, "these tests need the compiled kernels"


def make(monkeypatch: pytest.MonkeyPatch, isa: str, threads: int = 2, **options: Any) -> NativeTarget:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    target = NativeTarget(options.pop("weights", None) or random_weights(), threads=threads, **options)
    assert target.model.isa == isa
    return target


def tokens(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(V) for _ in range(count)]


@pytest.mark.parametrize("kind", TYPES)
def test_logits_and_taps_equal_the_references(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = WIDE if FORMATS[kind].part else CONFIG
    weights = random_weights([kind], config=config)
    rng = random.Random(7)
    a, b, c = tokens(1, 40), tokens(2, 19), tokens(3, 9)
    rows: list[Row] = [
        (4, a, 39, 40, random_tree(rng, 9, V)),
        (7, b, 12, 19, Tree.chain(tokens(4, 5))),
        (2, c, 0, 6, NOTHING),
    ]
    found = {}
    for isa in kernels.available():
        target = make(monkeypatch, isa, weights=weights)
        read(target, 4, a[:39])
        read(target, 7, b[:12])
        scores = target.forward(draft_of(rows), frozenset({"hidden.0", "hidden.2", "hidden.3", LAST}))
        found[isa] = {"logits": scores.logits.copy(), **scores.features}
    wanted = found.pop("reference")
    assert wanted["logits"].shape == (10 + 6, V)
    # Activations stay as they are beside floats, though keys and values are kept as float16. In 8 bits a last
    # bit becomes a step of 1/127 here and there: compare against the spread.
    largest, mean = (0.02, 0.001) if FORMATS[kind].holds_floats else (0.15, 0.015)
    for isa, parts in found.items():
        for name, part in parts.items():
            error = np.abs(part - wanted[name]) / wanted[name].std()
            assert error.max() < largest, (isa, name, error.max())
            assert error.mean() < mean, (isa, name, error.mean())


@pytest.mark.parametrize("isa", kernels.available())
def test_the_last_state_is_what_the_head_turns_into_logits(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the last layer's own state beside it, which is not."""
    target = make(monkeypatch, isa, weights=random_weights(["F16"]))
    kind, packed, *shape = target.embedding()  # which is the head, too
    head = dequantise(kind, shape[0], shape[1], packed)
    scores = target.forward(draft_of([(0, tokens(1, 9), 0, 9, NOTHING)]), frozenset({LAST, "hidden.3"}))
    last, logits = (scores.features[tap][-1] @ head.T for tap in (LAST, "hidden.3"))
    np.testing.assert_allclose(last, scores.logits[-1], rtol=1e-3, atol=1e-4)
    assert np.abs(logits - scores.logits[-1]).max() > 0.1


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_models_bits_do_not_depend_on_passes_of_another_at_the_same_time(
    isa: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one thread each they run beside each other, on two they take turns."""
    kinds = ("Q8_0", "Q4_1")
    targets = [make(monkeypatch, isa, threads, weights=random_weights([kind], config=WIDE)) for kind in kinds]
    drafts = [draft_of([(0, tokens(seed, 20), 0, 20, NOTHING)]) for seed in range(20)]

    def passes(target: NativeTarget) -> list[bytes]:
        return [target.forward(draft, frozenset()).logits.tobytes() for draft in drafts]

    alone = [passes(target) for target in targets]
    with ThreadPoolExecutor(len(targets)) as pool:
        assert list(pool.map(passes, targets)) == alone


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_do_not_depend_on_the_other_rows(
    isa: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains and trees of 1 to 33 nodes, with neighbours, against one token at a time on one thread."""
    weights = random_weights(TYPES, config=WIDE)  # all types in one model
    one_by_one = make(monkeypatch, isa, 1, weights=weights)
    together = make(monkeypatch, isa, threads, weights=weights)
    rng = random.Random(threads)
    history = tokens(5, 37)
    read(one_by_one, 0, history[:-1], chunk=1)
    read(together, 0, history[:-1], chunk=36)
    # The portable kernels take ten times as long.
    sizes, share = ((1, 2, 3, 4, 5, 8, 33), 0.1) if isa == "portable" else (range(1, 34), 0.2)
    compared = 0
    for nodes in sizes:
        tree = random_tree(rng, nodes - 1, V, chain=nodes % 2 == 0)
        neighbour = tokens(nodes, 3 + nodes)
        rows: list[Row] = [
            (0, history, 36, 37, tree),
            (1, neighbour, 0, len(neighbour), random_tree(rng, nodes % 7, V)),
        ]
        order = [1, 0] if nodes % 3 == 0 else [0, 1]
        draft = draft_of([rows[i] for i in order])
        logits = together.forward(draft, frozenset()).logits
        first = list(draft.scored).index(draft.roots[order.index(0)])
        for node in range(-1, nodes - 1):
            path = [tree.tokens[i] for i in path_to(tree, node)]
            grown = history + path
            if len(path) == 0 or rng.random() < share:
                for end in range(37, len(grown) + 1):
                    alone = step(one_by_one, [(0, grown[:end], end - 1, end, NOTHING)])
                np.testing.assert_array_equal(logits[first + 1 + node], alone[0])
                compared += 1
                one_by_one.release([0])
                read(one_by_one, 0, history[:-1], chunk=1)
        together.commit(draft, _keep_nothing(draft, order))
        together.release([0, 1])
        read(together, 0, history[:-1], chunk=nodes)
    assert compared > 3 * len(sizes) * share + len(sizes)


def _keep_nothing(draft: Any, order: list[int]) -> Any:
    from paceline.core import Verdict

    return Verdict([[] for _ in order], [-1] * len(order))


@pytest.mark.parametrize("isa", COMPILED)
def test_the_cache_after_random_walks_equals_a_fresh_one(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walked, fresh = make(monkeypatch, isa), make(monkeypatch, isa, threads=1)
    rng = random.Random(3)
    histories = {slot: tokens(slot, rng.randrange(1, 30)) for slot in range(3)}
    for slot, history in histories.items():
        read(walked, slot, history[:-1])
    moved = 0
    for _ in range(80):
        rows: list[Row] = []
        paths = []
        for slot, history in histories.items():
            tree = random_tree(rng, rng.randrange(0, 9), V, chain=rng.random() < 0.3)
            path = path_to(tree, rng.randrange(-1, len(tree.tokens))) if tree.tokens else []
            path = path[: rng.randrange(len(path) + 1)]
            moved += path != list(range(len(path)))
            rows.append((slot, list(history), len(history) - 1, len(history), tree))
            paths.append(path)
        step(walked, rows, paths)
        for (slot, *_, tree), path in zip(rows, paths, strict=True):
            histories[slot] += [tree.tokens[i] for i in path] + [rng.randrange(V)]
    assert moved > 20, "no accepted node had to be moved"
    for slot, history in histories.items():
        read(fresh, slot, history[:-1], chunk=50)
        for layer in range(CONFIG.layers):
            for found, wanted in zip(
                walked.read_cache(slot, layer), fresh.read_cache(slot, layer), strict=True
            ):
                np.testing.assert_array_equal(found, wanted)
    assert walked.model.length(0) == len(histories[0]) - 1


def test_a_full_cache_refuses_the_pass_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in kernels.available():
        target = make(monkeypatch, isa, cache_tokens=64)
        history = tokens(1, 60)
        read(target, 0, history)
        before, pages = target.read_cache(0, 1)[0], target.model.free_pages
        with pytest.raises(CapacityError):
            target.forward(draft_of([(1, tokens(2, 30), 0, 20, NOTHING)]), frozenset())
        assert target.model.free_pages == pages == 0
        np.testing.assert_array_equal(target.read_cache(0, 1)[0], before)
        target.release([0, 5])
        assert target.model.free_pages == 4
        read(target, 1, tokens(2, 30))


def test_a_draft_that_starts_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in kernels.available():
        target = make(monkeypatch, isa)
        read(target, 0, tokens(1, 10))
        with pytest.raises(ValueError, match="holds 10 tokens"):
            target.forward(draft_of([(0, tokens(1, 10), 9, 10, NOTHING)]), frozenset())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0, allowed: 1 to 256"),
        ({"context": 513}, "context is 513, allowed: 16 to 512"),
        ({"cache_tokens": 3}, "cache_tokens is 3, allowed: 16 to"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NativeTarget(random_weights(), **options)


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.ISA_VARIABLE, "sse1")
    with pytest.raises(ConfigError, match=r"PACELINE_ISA='sse1' cannot run here; allowed: .*reference"):
        NativeTarget(random_weights())
