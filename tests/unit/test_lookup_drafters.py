"""What drafters propose that look things up: recycling, datastore, lookahead, prediction, kept answers."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import numpy as np
import pytest

from paceline.core import Budget, Drafter, Tree, View
from paceline.drafters import load
from paceline.drafters._acceptance import Acceptance
from paceline.drafters._promises import Promises
from paceline.drafters.lookahead import Lookahead, Pool
from paceline.drafters.prediction import Follower
from paceline.drafters.recycling import Recycling, likeliest
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.lookups import Continuations, Text
from paceline.lookups.best_first import best_first
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests import discovery

V = 40
INFO = TableTarget(V).info
GREEDY = SamplingParams(seed=1, temperature=0, max_tokens=150, ignore_eos=True)
WARM = SamplingParams(seed=1, temperature=0.9, max_tokens=150, ignore_eos=True)


def propose(drafter: Drafter, text: list[int], prediction: list[int] | None = None, prompt: int = 1) -> Tree:
    view = View(
        [0],
        [text],
        [len(text) - 1],
        [len(text)],
        [None],  # type: ignore[list-item]
        [0],
        [prompt],
        ["d"],
        {} if prediction is None else {0: prediction},
    )
    return drafter.propose(view, [Budget(16, 16)])[0]


def answer(
    drafter: Drafter, params: SamplingParams, prediction: list[int] | None = None, nodes: int = 16
) -> Completion:
    engine = Engine(TableTarget(V), {"d": drafter}, drafter="d", nodes=nodes)
    return engine.generate([1, 2], params, "d", prediction=prediction)[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("recycling:successors=0", "recycling:successors must be from 1 to 64, got 0"),
        ("recycling:max_nodes=0", "recycling:max_nodes must be at least 1"),
        ("recycling:min_probability=2", "recycling:min_probability must be above 0"),
        ("datastore", "datastore:path must name a file"),
        ("datastore:path=x,max_nodes=0", "datastore:max_nodes must be at least 1"),
        ("datastore:path=x,min_probability=0", "datastore:min_probability must be above 0"),
        ("prediction:max_nodes=0", "prediction:max_nodes must be at least 1"),
        ("prediction:min_probability=nan", "prediction:min_probability must be above 0"),
        ("lookahead:window=0", "lookahead:window must be at least 1"),
        ("lookahead:levels=0", "lookahead:levels must be at least 1"),
        ("lookahead:grams=0", "lookahead:grams must be at least 1"),
        ("suffix:store=x,store_tokens=0", "suffix:store keeps nothing with store_tokens=0"),
    ],
)
def test_an_option_out_of_range_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spec, INFO)


def test_best_first_takes_the_likeliest_node_next_and_stops_at_its_price() -> None:
    children = {0: [(1, 0.6, 1), (2, 0.3, 2)], 1: [(3, 0.4, 3)], 2: [(4, 0.9, 4)]}
    tree = best_first(0, lambda state: children.get(state, []), 10, 10, 0.01)
    assert tree == Tree([1, 2, 4, 3], [-1, -1, 1, 0], confidences=[0.6, 0.3, 0.9, 0.4])
    assert best_first(0, lambda state: children.get(state, []), 3, 10, 0.01).tokens == [1, 2, 4]
    assert best_first(0, lambda state: children.get(state, []), 10, 1, 0.01).tokens == [1, 2]
    assert best_first(0, lambda state: children.get(state, []), 10, 10, 0.2).tokens == [1]


def test_confidences_shrink_where_promises_are_not_kept() -> None:
    promises = Promises(weight=1)
    found = Continuations([1])
    found.add(Text([7, 8]), 0, 2, 1.0)
    history = [1]
    for _ in range(20):
        promises.expect(0, history, found)
        history.append(3)
    assert promises.scales[2] < 0.2
    assert promises.scales[3] == 1
    for _ in range(200):
        promises.expect(0, history, found)
        history.append(7)
    assert promises.scales[2] == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("size", [5, 12, 300, 1000, 1023])
def test_the_likeliest_are_those_found_by_sorting(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(20):
        logits = rng.normal(0, 2, size).astype(np.float32)
        found = likeliest(logits, 8)
        assert [token for token, _ in found] == np.argsort(-logits)[:8].tolist()
    weights = np.exp(np.sort(logits)[::-1][:8].astype(np.float64))
    assert [share for _, share in found] == [min(int(8 * w / weights.sum()), 7) for w in weights]


def test_acceptance_is_learned_by_rank_and_share() -> None:
    acceptance, rng = Acceptance(2), random.Random(1)
    for _ in range(5000):
        acceptance.learn(((1, 6), (2, 1)), 1 if rng.random() < 0.3 else 2 if rng.random() < 0.5 else 3)
    assert acceptance.estimates[0][6] == pytest.approx(0.3, abs=0.05)
    assert acceptance.estimates[1][1] == pytest.approx(0.35, abs=0.05)
    assert acceptance.estimates[0][1] == Acceptance(2).estimates[0][1]


def test_recycling_knows_the_likeliest_successors_of_every_token_kept() -> None:
    target = TableTarget(V)
    target.table[:] = target.table[0]  # the token before the last makes no difference
    drafter = load("recycling", INFO)
    assert isinstance(drafter, Recycling)
    engine = Engine(target, {"d": drafter}, drafter="d")
    kept = engine.generate([1, 2], WARM)[0].token_ids
    assert drafter._table.keys() == {2, *kept[:-1]}
    for token, successors in drafter._table.items():
        assert [one for one, _ in successors] == np.argsort(-target.table[0, token])[:8].tolist()
    cold, warm = (engine.generate([1, 2], GREEDY)[0].stats.tau for _ in range(2))
    assert warm >= cold > 1.5


def test_a_prediction_that_is_right_is_followed_to_its_end() -> None:
    plain = answer(load("none", INFO), WARM)
    done = answer(load("prediction", INFO), WARM, list(plain.token_ids))
    assert done.token_ids == plain.token_ids
    assert done.stats.tau > 7
    assert done.stats.acceptance_rate == 1


@pytest.mark.parametrize("change", ["replaced", "left out", "put in", "moved"])
def test_an_answer_that_leaves_its_prediction_is_found_again(change: str) -> None:
    plain = answer(load("none", INFO), WARM)
    tokens, rng = list(plain.token_ids), random.Random(2)
    for place in range(130, 0, -25):
        if change == "replaced":
            tokens[place] = rng.randrange(V)
        elif change == "left out":
            del tokens[place : place + 3]
        elif change == "put in":
            tokens[place:place] = [rng.randrange(V) for _ in range(4)]
    if change == "moved":
        tokens = tokens[80:] + tokens[:80]
    done = answer(load("prediction", INFO), WARM, tokens)
    assert done.token_ids == plain.token_ids
    assert done.stats.tau > 2.5


def test_a_prediction_that_is_nonsense_is_soon_left_alone() -> None:
    rng = random.Random(3)
    done = answer(load("prediction", INFO), WARM, [rng.randrange(V) for _ in range(150)])
    assert done.stats.drafted < done.stats.passes
    assert answer(load("prediction", INFO), WARM).stats.drafted == 0, "without one nothing is drafted"


def test_following_token_by_token_equals_following_at_once() -> None:
    rng = random.Random(4)
    for _ in range(50):
        prediction = [rng.randrange(5) for _ in range(60)]
        history = [9, *(token if rng.random() < 0.9 else rng.randrange(5) for token in prediction)]
        slow, fast = Follower(prediction), Follower(prediction)
        for end in range(1, len(history) + 1):
            slow.read(history[:end], 1)
        fast.read(history, 1)
        both = [follower.continuations(history, 1) for follower in (slow, fast)]
        assert len({found.longest for found in both}) == 1
        assert both[0].first() == both[1].first()
        assert both[0].tree(9, 9, 0.0) == both[1].tree(9, 9, 0.0)


def test_the_pool_keeps_the_latest_n_grams_of_a_token() -> None:
    pool = Pool(2)
    for rest in ((1, 2), (3, 4), (5, 6), (3, 4)):
        pool.add(7, rest)
    assert pool.after(7) == [(3, 4), (5, 6)]
    assert pool.after(8) == ()


def test_the_window_becomes_n_grams_that_the_target_would_say() -> None:
    """Level by level the guesses turn into what greedy decoding says after them."""
    target = TableTarget(V)
    target.table[:] = target.table[0]
    drafter = load("lookahead:window=3,levels=2,grams=1", INFO)
    assert isinstance(drafter, Lookahead)
    engine = Engine(target, {"d": drafter}, drafter="d", nodes=12)
    engine.generate([1, 2], GREEDY)
    pool = drafter._pool._grams
    assert len(pool) > 3
    likely = target.table[0].argmax(axis=1)
    for grams in pool.values():
        for rest in grams:
            assert rest[-1] == likely[rest[-2]]


def test_lookahead_finds_out_what_repeats_and_stays_within_a_small_budget() -> None:
    for nodes in (1, 3, 8, 30):
        done = answer(load("lookahead", INFO), GREEDY, nodes=nodes)
        assert done.token_ids == answer(load("none", INFO), GREEDY).token_ids
    assert done.stats.tau > 1.2


def test_the_datastore_continues_a_text_that_it_holds() -> None:
    rng = random.Random(5)
    text = [rng.randrange(V) for _ in range(500)]
    drafter = discovery.drafter("datastore:max_nodes=7", TableTarget(V), text)
    tree = propose(drafter, [3, *text[100:110]])
    assert tree.tokens[:4] == text[110:114]
    assert list(tree.parents[:4]) == [-1, 0, 1, 2]


def test_answers_outlast_the_program(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    plain = answer(load("none", INFO), WARM)
    first = load(f"suffix:store={path}", INFO)
    assert answer(first, WARM).token_ids == plain.token_ids
    del first
    gc.collect()
    done = answer(load(f"suffix:store={path}", INFO), WARM)
    assert done.token_ids == plain.token_ids
    assert done.stats.tau > 2 * answer(load("suffix", INFO), WARM).stats.tau
