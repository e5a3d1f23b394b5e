"""What a target must hold to whose sequences share pages: not a bit changes, and no page is lost."""

from __future__ import annotations

import pytest
from numpy.testing import assert_array_equal

from paceline.core import PageSharing, Target, Tree, Verdict
from paceline.errors import CapacityError
from paceline.kernels import ISA_VARIABLE
from tests.contract.targets import TARGETS
from tests.contract.test_targets import NO_TAPS, draft, keep_known, logits_after, words

SHARING = [name for name in TARGETS if TARGETS[name](64).info.shares_pages]


class Both(Target, PageSharing):
    """For types."""


def made(name: str, cache_tokens: int, patch: pytest.MonkeyPatch) -> Both:
    if name == "reference":
        patch.setenv(ISA_VARIABLE, "reference")
        name = "native"
    return TARGETS[name](cache_tokens)


@pytest.fixture(params=[*SHARING, "reference"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Both:
    return made(request.param, 160, monkeypatch)


def read(target: Target, slot: int, text: list[int], start: int = 0) -> None:
    """Put all of the text behind `start` into the sequence's cache."""
    packed = draft({slot: text}, {slot: start}, {}, {})
    target.forward(packed, NO_TAPS)
    target.commit(packed, keep_known(packed))


def fits(target: Target, tokens: int) -> bool:
    """Whether a fresh sequence of so many tokens finds room."""
    try:
        target.forward(draft({99: words(target, tokens, 1)}, {}, {}, {}), NO_TAPS)
    except CapacityError:
        return False
    finally:
        target.release([99])
    return True


def test_pages_are_those_full_of_committed_tokens(target: Both) -> None:
    size = target.info.page_tokens
    assert list(target.pages(0)) == []
    text = words(target, 2 * size - 1, 1)
    read(target, 0, text)
    assert len(target.pages(0)) == 1
    packed = draft({0: [*text, 1]}, {0: len(text)}, {0: Tree.chain(words(target, size, 2))}, {})
    target.forward(packed, NO_TAPS)
    assert len(target.pages(0)) == 1, "drafted tokens are not committed"
    target.commit(packed, keep_known(packed))
    assert len(set(target.pages(0))) == 2


def test_a_sequence_that_begins_with_another_s_pages_gets_the_bits_of_one_that_was_read(target: Both) -> None:
    size = target.info.page_tokens
    text = words(target, 3 * size, 1)
    read(target, 0, text)
    target.adopt(1, target.pages(0)[:2])
    for slot in (0, 1):  # both go on, each in a page of its own, and in one pass
        assert list(target.pages(slot))[:2] == list(target.pages(0))[:2]
    left, right = [*text, *words(target, 5, 2)], [*text[: 2 * size], *words(target, 7, 3)]
    trees = {0: Tree([1, 2, 3], [-1, 0, -1]), 1: Tree([4, 5], [-1, 0])}
    packed = draft({0: left, 1: right}, {0: 3 * size, 1: 2 * size}, trees, {})
    logits = target.forward(packed, NO_TAPS).logits.copy()
    target.commit(packed, Verdict([[packed.roots[0] + 1], [packed.roots[1] + 1]], [0, 0]))
    target.release([0, 1])
    for place, end in enumerate(([], [1], [1, 2], [3])):
        assert_array_equal(logits[place], logits_after(target, left + end))
    for place, end in enumerate(([], [4], [4, 5])):
        assert_array_equal(logits[4 + place], logits_after(target, right + end))


def test_what_one_sequence_writes_behind_shared_pages_the_other_does_not_see(target: Both) -> None:
    size = target.info.page_tokens
    text = words(target, 2 * size, 1)
    read(target, 0, text)
    target.adopt(1, target.pages(0))
    read(target, 1, [*text, *words(target, size, 2)], 2 * size)
    target.release([1])
    more = [*text, *words(target, 3, 3)]
    packed = draft({0: more}, {0: 2 * size}, {}, {})
    logits = target.forward(packed, NO_TAPS).logits[-1].copy()
    target.release([0])
    assert_array_equal(logits, logits_after(target, more))


def test_held_pages_outlive_their_sequence_and_are_free_once_dropped(target: Both) -> None:
    size, all_of_it = target.info.page_tokens, target.info.cache_tokens
    text = words(target, 3 * size, 1)
    read(target, 0, text)
    held = list(target.pages(0))
    target.hold(held)
    target.release([0])
    assert fits(target, all_of_it - 3 * size)
    assert not fits(target, all_of_it - 3 * size + 1)
    target.adopt(5, held)
    packed = draft({5: [*text, 1]}, {5: 3 * size}, {}, {})
    logits = target.forward(packed, NO_TAPS).logits[-1].copy()
    target.drop(held[1:])
    assert not fits(target, all_of_it - 3 * size)
    target.release([5])
    assert fits(target, all_of_it - size)
    assert not fits(target, all_of_it)
    target.drop(held[:1])
    assert fits(target, all_of_it)
    assert_array_equal(logits, logits_after(target, [*text, 1]))


def test_a_page_is_free_when_the_last_of_its_sequences_ends(target: Both) -> None:
    size, all_of_it = target.info.page_tokens, target.info.cache_tokens
    read(target, 0, words(target, 2 * size, 1))
    target.adopt(1, target.pages(0))
    target.adopt(2, target.pages(1)[:1])
    target.release([0])
    assert not fits(target, all_of_it - 2 * size + 1)
    target.release([1])
    assert fits(target, all_of_it - size)
    assert not fits(target, all_of_it - size + 1)
    target.release([2])
    assert fits(target, all_of_it)


def test_misuse_is_an_error_and_changes_nothing(target: Both) -> None:
    read(target, 0, words(target, 2 * target.info.page_tokens, 1))
    pages = list(target.pages(0))
    free = next(page for page in range(9) if page not in pages)
    with pytest.raises(ValueError, match="slot 0 is in use"):
        target.adopt(0, pages)
    for call in (target.hold, target.drop, lambda pages: target.adopt(1, pages)):
        with pytest.raises(ValueError, match=f"page {free} is "):
            call([free])
    with pytest.raises(ValueError, match=f"page {pages[0]} is not held"):
        target.drop(pages)
    assert list(target.pages(0)) == pages
    target.release([0])
    assert fits(target, target.info.cache_tokens)
