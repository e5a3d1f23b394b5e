"""The native forward of MTP modules against the slow reference, and its own promises."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from paceline import kernels
from paceline.core import LAST, NOTHING
from paceline.errors import IncompatibleDrafter
from paceline.trained.mtp_reference import forward
from tests.mtp import CONFIG, random_drafter, run
from tests.native.models import Row, draft_of, path_to, random_tree
from tests.trained import embedding_of, rounded

V = CONFIG.vocab_size
KINDS = {
    "reduced": CONFIG,
    "all tokens": replace(CONFIG, draft_vocab_size=V),
    "stretched": replace(CONFIG, rope_scaling={"rope_type": "linear", "factor": 4.0}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_what_is_fed_on_equal_the_slow_references(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two texts, one with a tree below it and a part in the cache, on every instruction set."""
    config, rng = KINDS[kind], np.random.default_rng(5)
    weights = random_drafter(config)
    if kind == "all tokens":
        weights = replace(weights, token_ids=np.arange(V))
    table, head = (rounded(rng.standard_normal((V, config.hidden), np.float32)) for _ in range(2))
    rows = head[weights.token_ids]
    text, other = rng.integers(V, size=30).tolist(), rng.integers(V, size=11).tolist()
    tree = random_tree(random.Random(4), 7, V)
    states = rng.standard_normal((41, config.hidden), np.float32)
    drafted = rng.standard_normal((7, config.hidden), np.float32)
    wanted = []  # of the text's last token, the tree's nodes, the other text's last token
    for node in range(-1, 7):
        path = path_to(tree, node)
        read = [*text, *(tree.tokens[i] for i in path)]
        logits, fed_on = forward(weights, rows, table[read], np.concatenate([states[:30], drafted[path]]))
        wanted.append((logits[-1], fed_on[-1]))
    logits, fed_on = forward(weights, rows, table[other], states[30:])
    wanted.append((logits[-1], fed_on[-1]))
    for isa in kernels.available():
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        model = run(weights, embedding_of(table), embedding_of(head), threads=2)
        assert model.taps == (LAST,)
        given = model.fuse([states])
        cached = draft_of([(3, text, 0, 20, NOTHING)])
        cached = replace(cached, scored=np.zeros(0, np.int32))
        assert [len(part) for part in model.forward(cached, given[:20])] == [0, 0]
        model.commit(replace(cached, roots=(cached.offsets[1:] - 1).tolist()))
        both: list[Row] = [(3, text, 20, 30, tree), (5, other, 0, 11, NOTHING)]
        draft = draft_of(both)
        logits, fed_on = model.forward(draft, np.concatenate([given[20:30], drafted, given[30:]]))
        assert logits.shape == (9, config.draft_vocab_size)
        for place, (expected, expected_fed_on) in enumerate(wanted):
            for found, exact in ((logits[place], expected), (fed_on[draft.scored[place]], expected_fed_on)):
                error = np.abs(found - exact) / exact.std()
                assert error.max() < 0.15, (isa, place, error.max())
                assert error.mean() < 0.03, (isa, place, error.mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 204}, "for a target of 204 tokens, this one has 203"),
        ({"hidden": 128}, "for a target of 128 wide hidden states, this one has 96"),
        ({"ffn": 150}, "the drafter's intermediate_size is 150, the kernels need a multiple of 32"),
    ],
)
def test_a_module_for_another_target_is_refused(changes: dict[str, int], message: str) -> None:
    weights = random_drafter()
    shared = embedding_of(np.zeros((V, CONFIG.hidden), np.float32))
    with pytest.raises(IncompatibleDrafter, match=message):
        run(replace(weights, config=replace(CONFIG, **changes)), shared)  # type: ignore[arg-type]
