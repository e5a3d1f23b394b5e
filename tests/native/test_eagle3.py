"""The native forward of EAGLE-3 drafters against the slow reference, and its own promises."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from paceline import kernels
from paceline.core import NOTHING, Draft, Tree
from paceline.errors import CapacityError, IncompatibleDrafter
from paceline.kernels.packing import dequantise
from paceline.models.eagle3_folder import Eagle3Config
from paceline.trained.eagle3 import NativeEagle3
from paceline.trained.eagle3_reference import forward, fuse
from tests.eagle3 import CONFIG, random_drafter, run
from tests.native.models import Row, draft_of, path_to, random_tree, random_weights
from tests.trained import embedding_of

V = CONFIG.vocab_size
TARGET = random_weights()
KINDS = {
    "plain": CONFIG,
    "normed": replace(CONFIG, norm_before_residual=True, norm_before_fc=True, fc_norm=True, norm_output=True),
    "stretched": replace(
        CONFIG,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32.0,
        },
    ),
}
COMPILED = [isa for isa in kernels.available() if isa != "reference"]
assert COMPILED, "these tests need the compiled kernels"


def make(
    monkeypatch: pytest.MonkeyPatch, isa: str, config: Eagle3Config = CONFIG, threads: int = 2, **options: int
) -> NativeEagle3:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    shared = np.random.default_rng(9).standard_normal((V, config.hidden), np.float32)
    return run(random_drafter(config), embedding_of(shared), 3, threads, **options)


def tokens(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(V) for _ in range(count)]


def features(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, CONFIG.hidden), np.float32)


def read(model: NativeEagle3, slot: int, text: list[int], given: np.ndarray, chunk: int) -> None:
    """Put the tokens into the cache."""
    for start in range(0, len(text), chunk):
        draft = unscored(draft_of([(slot, text, start, min(start + chunk, len(text)), NOTHING)]))
        model.forward(draft, given[start : start + chunk])
        model.commit(replace(draft, roots=(draft.offsets[1:] - 1).tolist()))


def unscored(draft: Draft) -> Draft:
    return replace(draft, scored=np.zeros(0, np.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_what_is_fed_on_equal_the_slow_references(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two texts, one with a tree below it, on every instruction set."""
    config = KINDS[kind]
    weights, text, other = random_drafter(config), tokens(1, 30), tokens(2, 11)
    shared = np.random.default_rng(9).standard_normal((V, config.hidden), np.float32)
    tree = random_tree(random.Random(4), 7, V)
    rng = np.random.default_rng(5)
    states = [rng.standard_normal((41, config.target_hidden), np.float32) for _ in range(3)]
    drafted = features(6, len(tree.tokens))
    wanted = []  # of the text's last token, the tree's nodes, the other text's last token
    given = fuse(weights, states)
    for node in range(-1, len(tree.tokens)):
        path = path_to(tree, node)
        read_tokens = [*text, *(tree.tokens[i] for i in path)]
        logits, fed_on = forward(weights, shared[read_tokens], np.concatenate([given[:30], drafted[path]]))
        wanted.append((logits[-1], fed_on[-1]))
    logits, fed_on = forward(weights, shared[other], given[30:])
    wanted.append((logits[-1], fed_on[-1]))
    for isa in kernels.available():
        model = make(monkeypatch, isa, config)
        fused = np.ascontiguousarray(model.fuse(states))
        assert np.abs(fused - given).max() < 0.05 * given.std(), isa
        read(model, 3, text[:20], fused, 20)
        rows: list[Row] = [(3, text, 20, 30, tree), (5, other, 0, 11, NOTHING)]
        draft = draft_of(rows)
        logits, fed_on = model.forward(draft, np.concatenate([fused[20:30], drafted, fused[30:]]))
        assert logits.shape == (9, config.draft_vocab_size)
        for place, (expected, expected_fed_on) in enumerate(wanted):
            node = draft.scored[place]
            for found, exact in ((logits[place], expected), (fed_on[node], expected_fed_on)):
                error = np.abs(found - exact) / exact.std()
                assert error.max() < 0.15, (isa, place, error.max())
                assert error.mean() < 0.03, (isa, place, error.mean())


@pytest.mark.parametrize("isa", COMPILED)
def test_a_rows_bits_do_not_depend_on_the_other_rows(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one, together = make(monkeypatch, isa, threads=1), make(monkeypatch, isa)
    text, given = tokens(5, 37), features(5, 37)
    read(one_by_one, 0, text[:36], given, 1)
    read(together, 0, text[:36], given, 36)
    for nodes in (1, 2, 5, 17):
        tree, drafted = random_tree(random.Random(nodes), nodes, V), features(nodes, nodes)
        neighbour = tokens(nodes, 3 + nodes)
        rows: list[Row] = [(0, text, 36, 37, tree), (1, neighbour, 0, len(neighbour), NOTHING)]
        draft = draft_of(rows)
        beside = features(nodes + 1, len(neighbour))
        logits, _ = together.forward(draft, np.concatenate([given[36:], drafted, beside]))
        for node in range(nodes):
            path = path_to(tree, node)
            chain = Tree.chain([tree.tokens[i] for i in path])
            alone, _ = one_by_one.forward(
                draft_of([(0, text, 36, 37, chain)]), np.concatenate([given[36:], drafted[path]])
            )
            np.testing.assert_array_equal(logits[1 + node], alone[-1])
        together.release([1])


@pytest.mark.parametrize("isa", kernels.available())
def test_what_is_kept_equals_a_fresh_reading(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes with drafted nodes that are never kept, and passes that score nothing, in chunks of any size."""
    walked, fresh = make(monkeypatch, isa), make(monkeypatch, isa, threads=1)
    rng, text, given = random.Random(3), tokens(7, 60), features(7, 60)
    start = 0
    while start < 50:
        end = start + rng.randint(1, 6)
        tree = random_tree(rng, rng.randrange(6), V)
        draft = draft_of([(2, text[:end], start, end, tree)])
        if not tree.tokens:
            draft = unscored(draft)
        walked.forward(draft, np.concatenate([given[start:end], features(end, len(tree.tokens))]))
        walked.commit(draft)
        start = end
    read(fresh, 2, text[:start], given, 25)
    for found, wanted in zip(walked.read_cache(2), fresh.read_cache(2), strict=True):
        assert len(found) == start
        np.testing.assert_array_equal(found, wanted)


def test_features_are_asked_for_and_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in kernels.available():
        model = make(monkeypatch, isa)
        draft = draft_of([(0, tokens(1, 3), 0, 3, NOTHING)])
        with pytest.raises(CapacityError):
            make(monkeypatch, isa, cache_tokens=16).forward(
                draft_of([(0, tokens(1, 20), 0, 20, NOTHING)]), features(1, 20)
            )
        common = (draft.slots, draft.offsets, draft.starts, draft.tokens, draft.parents, draft.positions)
        logits = np.empty((1, CONFIG.draft_vocab_size), np.float32)
        with pytest.raises(ValueError, match="takes features"):
            model._model.forward(*common, draft.scored, logits, [], [])


def test_own_embeddings_take_the_place_of_the_targets() -> None:
    weights = random_drafter(embeddings=True)
    draft, given = draft_of([(0, [5, 7, 9], 0, 3, NOTHING)]), features(1, 3)
    zeros = embedding_of(np.zeros((V, CONFIG.hidden), np.float32))
    own = run(weights, zeros, 3).forward(draft, given)[0]
    wanted = forward(weights, weights.tensors["embed_tokens.weight"][[5, 7, 9]], given)[0][-1]
    assert np.abs(own - wanted).max() < 0.2 * wanted.std()


def test_the_targets_packed_rows_are_the_embeddings() -> None:
    from paceline.targets.native import NativeTarget

    target = NativeTarget(TARGET, threads=1)
    kind, packed, *shape = target.embedding()
    table = dequantise(kind, shape[0], shape[1], packed)
    draft, given = draft_of([(0, [5, 7, 9], 0, 3, NOTHING)]), features(1, 3)
    weights = random_drafter()
    shared = run(weights, target.embedding(), 3).forward(draft, given)[0]
    wanted = forward(weights, table[[5, 7, 9]], given)[0][-1]
    assert np.abs(shared - wanted).max() < 0.2 * wanted.std()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 204}, "for a target of 204 tokens, this one has 203"),
        ({"target_hidden": 128}, "for a target of 128 wide hidden states, this one has 96"),
        ({"hidden": 128}, "no embeddings of its own and is 128 wide, the target's are 96 wide"),
        ({"ffn": 150}, "the drafter's intermediate_size is 150, the kernels need a multiple of 32"),
        ({"layer_ids": (0, 2, 4)}, "reads the hidden states 0, 2, 4, a target of 3 layers has 0 to 3"),
        ({"layer_ids": (2, 0, 3)}, "each to be read once and in order"),
    ],
)
def test_a_drafter_for_another_target_is_refused(changes: dict[str, object], message: str) -> None:
    shared = embedding_of(np.zeros((V, CONFIG.hidden), np.float32))
    with pytest.raises(IncompatibleDrafter, match=message):
        run(replace(random_drafter(), config=replace(CONFIG, **changes)), shared, 3)  # type: ignore[arg-type]
