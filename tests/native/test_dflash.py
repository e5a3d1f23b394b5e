"""The native forward of DFlash drafters against the slow reference, and its own promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paceline import kernels
from paceline.errors import IncompatibleDrafter
from paceline.kernels.packing import Embedding, dequantise, pack, quantise_weights
from paceline.models.dflash_folder import HEAD, DFlashConfig
from paceline.targets.weights import aligned
from paceline.trained.dflash import NativeDFlash
from paceline.trained.dflash_reference import forward, inject
from tests.dflash import CONFIG, random_drafter, run
from tests.native.models import random_weights
from tests.trained import embedding_of

V = CONFIG.vocab_size
TABLE = np.random.default_rng(9).standard_normal((V, CONFIG.hidden), np.float32)
KINDS = {
    "reduced": CONFIG,
    "one layer": replace(CONFIG, layers=1, block=2),
    "stretched": replace(CONFIG, rope_scaling={"rope_type": "linear", "factor": 4.0}),
}


def states(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.standard_normal((len(CONFIG.layer_ids), count, CONFIG.hidden), np.float32))


def embedded(config: DFlashConfig, token: int, table: np.ndarray = TABLE) -> np.ndarray:
    return table[[token, *[config.mask_token] * config.depths]]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_slow_references(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts in one pass, on every instruction set; one of them was read in parts."""
    config = KINDS[kind]
    weights, given = random_drafter(config), states(1, 41)
    wanted = [
        forward(weights, weights.tensors[HEAD], embedded(config, token), inject(weights, own))
        for token, own in ((7, [part[:30] for part in given]), (11, [part[30:] for part in given]))
    ]
    for isa in kernels.available():
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        model = run(weights, embedding_of(TABLE))
        model.extend([3], [20], [part[:20] for part in given])
        model.extend([3, 5], [10, 11], [part[20:] for part in given])
        assert (model.length(3), model.length(5), model.length(4)) == (30, 11, 0)
        for _ in range(2):  # a block leaves nothing behind
            found = model.forward([3, 5], [7, 11])
            assert found.shape == (2, config.depths, config.draft_vocab_size)
            for own, exact in zip(found, wanted, strict=True):
                error = np.abs(own - exact) / exact.std()
                assert error.max() < 0.15, (isa, error.max())
                assert error.mean() < 0.03, (isa, error.mean())


@pytest.mark.parametrize("isa", kernels.available())
def test_a_sequences_bits_depend_neither_on_others_nor_on_how_it_was_read(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
    alone, together = (run(random_drafter(), embedding_of(TABLE)) for _ in range(2))
    given, beside = states(5, 37), states(6, 19)
    for at in range(37):
        alone.extend([0], [1], [part[at : at + 1] for part in given])
        if at % 9 == 0:
            alone.forward([0], [at])
    together.extend([0, 1], [37, 19], [np.concatenate(both) for both in zip(given, beside, strict=True)])
    np.testing.assert_array_equal(together.forward([1, 0], [3, 8])[1], alone.forward([0], [8])[0])
    together.release([0, 9])
    assert together.length(0) == 0
    together.extend([0], [37], given)
    np.testing.assert_array_equal(together.forward([0], [8]), alone.forward([0], [8]))


def packed_8_bit(values: np.ndarray) -> Embedding:
    return Embedding("Q8_0", aligned(pack("Q8_0", quantise_weights(values))), *values.shape)


@pytest.mark.parametrize("draft_vocab", [75, V])
def test_without_a_head_of_its_own_the_targets_rows_are_the_head(draft_vocab: int) -> None:
    weights = random_drafter(replace(CONFIG, draft_vocab_size=draft_vocab), head=False)
    assert HEAD not in weights.tensors
    given, rows = states(1, 9), np.random.default_rng(3).standard_normal((V, CONFIG.hidden), np.float32)
    head = packed_8_bit(rows)
    model = run(weights, embedding_of(TABLE), head)
    model.extend([0], [9], given)
    exact = dequantise(head.type, *rows.shape, head.packed)[weights.token_ids]
    wanted = forward(weights, exact, embedded(CONFIG, 7), inject(weights, given))
    found = model.forward([0], [7])[0]
    assert found.shape == (CONFIG.depths, draft_vocab)
    assert np.abs(found - wanted).max() < 0.15 * wanted.std()


def test_embeddings_and_head_are_the_native_targets_own() -> None:
    from paceline.targets.native import NativeTarget

    weights = random_weights()
    own = packed_8_bit(TABLE)
    untied = {"output.weight": own.packed, "output.weight.type": own.type}
    for tied in (True, False):
        tensors = {**weights.tensors, **({} if tied else untied)}
        target = NativeTarget(replace(weights, tensors=tensors), threads=1)
        kind, packed, *shape = target.embedding()
        table = dequantise(kind, shape[0], shape[1], packed) * target.embedding().scale
        for token in (0, 17, V - 1):
            np.testing.assert_array_equal(target.embedding().row(token), table[token])
        assert target.head()[2:4] == (V, CONFIG.hidden)
        assert target.head().packed is (target.embedding().packed if tied else own.packed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 204}, "for a target of 204 tokens, this one has 203"),
        ({"hidden": 128}, "for a target of 128 wide hidden states, this one has 96"),
        ({"ffn": 150}, "the drafter's intermediate_size is 150, the kernels need a multiple of 32"),
        ({"layer_ids": (0, 2, 4)}, "reads the hidden states 0, 2, 4, a target of 3 layers has 0 to 3"),
        ({"layer_ids": (2, 0, 3)}, "each to be read once and in order"),
    ],
)
def test_a_drafter_for_another_target_is_refused(changes: dict[str, object], message: str) -> None:
    weights = replace(random_drafter(), config=replace(CONFIG, **changes))  # type: ignore[arg-type]
    with pytest.raises(IncompatibleDrafter, match=message):
        NativeDFlash(weights, embedding_of(TABLE), embedding_of(TABLE), 3, cache_tokens=64)
