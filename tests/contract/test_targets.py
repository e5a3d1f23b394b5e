"""What every target must hold to."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from paceline.core import NOTHING, Draft, Target, Tree, Verdict, View
from paceline.errors import CapacityError
from tests.contract.targets import TARGETS

NO_TAPS: frozenset[str] = frozenset()


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param](1024)


def draft(
    histories: dict[int, list[int]], cached: dict[int, int], trees: dict[int, Tree], ends: dict[int, int]
) -> Draft:
    """Each slot's known tokens from `cached` to `ends` (by default all), with its tree below."""
    slots = list(histories)
    view = View(
        slots,
        [histories[slot] for slot in slots],
        [cached.get(slot, 0) for slot in slots],
        [ends.get(slot, len(histories[slot])) for slot in slots],
        *([None] * len(slots) for _ in range(4)),
    )
    return Draft.pack(view, [trees.get(slot, NOTHING) for slot in slots])


def keep_known(packed: Draft) -> Verdict:
    return Verdict([[] for _ in packed.slots], [-1] * len(packed.slots))


def logits_after(target: Target, text: Sequence[int], slot: int = 900) -> np.ndarray:
    """Logits behind a text, from a fresh prefill."""
    packed = draft({slot: list(text)}, {}, {}, {})
    logits = np.array(target.forward(packed, NO_TAPS).logits[-1])
    target.commit(packed, keep_known(packed))
    target.release([slot])
    return logits


def words(target: Target, count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(target.info.vocab_size) for _ in range(count)]


def test_forward_gives_one_row_of_logits_per_scored_node(target: Target) -> None:
    packed = draft({0: words(target, 4, 1)}, {}, {0: Tree([1, 2, 3], [-1, 0, -1])}, {})
    scores = target.forward(packed, NO_TAPS)
    assert scores.logits.shape == (4, target.info.vocab_size)
    assert np.isfinite(scores.logits).all()


def test_forward_leaves_committed_state_as_it_was(target: Target) -> None:
    packed = draft({0: words(target, 4, 1)}, {}, {0: Tree([1, 2], [-1, 0])}, {})
    first = np.array(target.forward(packed, NO_TAPS).logits)
    assert_array_equal(np.array(target.forward(packed, NO_TAPS).logits), first)


def test_a_node_is_scored_as_if_its_path_were_the_text(target: Target) -> None:
    text, tree = words(target, 5, 2), Tree([3, 4, 5, 3, 6], [-1, 0, 0, -1, 2])
    paths = [[3], [3, 4], [3, 5], [3], [3, 5, 6]]
    packed = draft({0: text}, {}, {0: tree}, {})
    scores = np.array(target.forward(packed, NO_TAPS).logits)
    for row, path in zip(scores, [[], *paths], strict=True):
        assert_array_equal(row, logits_after(target, text + path))


def test_neighbours_in_a_batch_leave_no_trace(target: Target) -> None:
    texts = {slot: words(target, 1 + 3 * slot, slot) for slot in range(4)}
    trees = {slot: Tree.chain(words(target, 3 - slot, slot + 9)) for slot in range(3)}
    together = np.array(target.forward(draft(texts, {}, trees, {}), NO_TAPS).logits)
    alone = [
        np.array(target.forward(draft({slot: text}, {}, trees, {}), NO_TAPS).logits)
        for slot, text in texts.items()
    ]
    assert_array_equal(together, np.concatenate(alone))


def test_a_prompt_may_be_read_in_chunks(target: Target) -> None:
    text = words(target, 11, 3)
    for start in range(0, 11, 4):
        end = min(start + 4, 11)
        packed = draft({0: text}, {0: start}, {}, {0: end})
        scores = target.forward(packed, NO_TAPS)
        assert len(scores.logits) == (end == 11)
        target.commit(packed, keep_known(packed))
    assert_array_equal(np.array(scores.logits[0]), logits_after(target, text))


def test_after_random_accepts_and_rejects_the_cache_equals_a_fresh_prefill(target: Target) -> None:
    rng = random.Random(4)
    texts = {slot: words(target, 2 + slot, slot) for slot in range(3)}
    cached = dict.fromkeys(texts, 0)
    for _ in range(25):
        trees = {}
        for slot in texts:
            size = rng.randrange(6)
            parents = [rng.randint(-1, node - 1) for node in range(size)]
            trees[slot] = Tree(words(target, size, rng.randrange(10**6)), parents)
        packed = draft(texts, cached, trees, {})
        scores = np.array(target.forward(packed, NO_TAPS).logits)
        parents = packed.parents.tolist()
        paths: list[list[int]] = []
        for row, slot in enumerate(texts):
            node, path = packed.roots[row], []
            while rng.random() < 0.7 and (below := [n for n, p in enumerate(parents) if p == node]):
                node = rng.choice(below)
                path.append(node)
            paths.append(path)
            place = packed.scored.tolist().index(node)
            kept = texts[slot] + [int(packed.tokens[n]) for n in path]
            assert_array_equal(scores[place], logits_after_without_commit(kept, target))
        target.forward(packed, NO_TAPS)
        verdict = Verdict(paths, words(target, len(texts), rng.randrange(10**6)))
        target.commit(packed, verdict)
        for row, slot in enumerate(texts):
            texts[slot] += [int(packed.tokens[n]) for n in paths[row]]
            cached[slot] = len(texts[slot])
            texts[slot].append(verdict.next_tokens[row])


def logits_after_without_commit(text: Sequence[int], target: Target) -> np.ndarray:
    packed = draft({901: list(text)}, {}, {}, {})
    return np.array(target.forward(packed, NO_TAPS).logits[-1])


def test_a_released_slot_starts_from_nothing_and_an_unknown_one_is_no_error(target: Target) -> None:
    text = words(target, 6, 5)
    packed = draft({0: text}, {}, {}, {})
    target.forward(packed, NO_TAPS)
    target.commit(packed, keep_known(packed))
    target.release([0, 77])
    assert_array_equal(logits_after(target, text[:3], slot=0), logits_after(target, text[:3]))


@pytest.mark.parametrize("name", TARGETS)
def test_a_full_cache_is_a_capacity_error_and_release_makes_room(name: str) -> None:
    target = TARGETS[name](64)
    packed = draft({0: words(target, 60, 6)}, {}, {}, {})
    target.forward(packed, NO_TAPS)
    target.commit(packed, keep_known(packed))
    with pytest.raises(CapacityError, match="cache"):
        target.forward(draft({1: words(target, 60, 7)}, {}, {}, {}), NO_TAPS)
    target.release([0])
    assert len(target.forward(draft({1: words(target, 60, 7)}, {}, {}, {}), NO_TAPS).logits) == 1


def test_a_tap_has_a_row_for_every_node_and_only_taps_asked_for_come(target: Target) -> None:
    packed = draft({0: words(target, 4, 8)}, {}, {0: Tree([1, 2], [-1, -1])}, {})
    assert not target.forward(packed, NO_TAPS).features
    for tap in target.info.taps:
        features = target.forward(packed, frozenset({tap})).features
        assert list(features) == [tap]
        assert len(features[tap]) == 6


def test_known_tokens_are_scored_where_a_view_wants_it(target: Target) -> None:
    text = words(target, 9, 1)
    wanting = View([0], [text], [0], [9], *([[None]] * 4), wanted={0: range(2, 6)})
    packed = Draft.pack(wanting, [NOTHING])
    assert packed.scored.tolist() == [2, 3, 4, 5, 8]
    logits = np.array(target.forward(packed, NO_TAPS).logits)
    for row, end in zip(logits, (3, 4, 5, 6, 9), strict=True):
        assert_array_equal(row, logits_after(target, text[:end]))
