"""Simulations hold, they come by every rare path, and they find planted bugs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from paceline.cache import Cache
from paceline.prefixes import Page, PrefixTree
from paceline.request import Request
from paceline.scheduler import Scheduler
from paceline.targets.table import TableTarget
from tests.sim.__main__ import main
from tests.sim.world import SOMETIMES, simulate

SEEDS = 200
"""`make sim` runs 10,000."""


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Simulations silence the log; other tests listen to it."""
    log = logging.getLogger("paceline")
    before = log.level
    yield
    log.setLevel(before)


def test_whatever_happens_answers_are_plain_decoding_s_and_the_books_balance() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        seen.update(simulate(seed))
    assert [what for what in SOMETIMES if not seen[what]] == []


def test_a_seed_says_everything() -> None:
    assert simulate(7) == simulate(7) != simulate(8)


def publishes_what_is_not_sound(patch: pytest.MonkeyPatch) -> None:
    leave = Scheduler._leave

    def hasty(self: Scheduler, request: Request, *, failed: bool = False) -> int:
        request.sound = True
        return leave(self, request)

    patch.setattr(Scheduler, "_leave", hasty)


def claims_nothing_for_drafts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cache, "stretch", lambda self, seat, tokens: tokens)


def claims_a_page_too_few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cache, "_pages", lambda self, tokens: tokens // self._page_tokens)


def keeps_the_pages_of_requests_that_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cache, "leave", lambda self, seat, *, failed=False: None)


def loses_the_pending_token(patch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt

    def forgetful(self: Scheduler, request: Request) -> int:
        if len(request.history) > request.prompt:
            request.history.pop()
        return preempt(self, request)

    patch.setattr(Scheduler, "_preempt", forgetful)


def shares_across_salts(patch: pytest.MonkeyPatch) -> None:
    find = PrefixTree.find
    patch.setattr(PrefixTree, "find", lambda self, salt, text: find(self, "", text))


def gives_up_pages_in_use(patch: pytest.MonkeyPatch) -> None:
    def use(self: PrefixTree, path: list[Page]) -> None:
        for page in path:
            page.users += 1

    patch.setattr(PrefixTree, "use", use)


def shares_a_page_that_is_not_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        TableTarget,
        "pages",
        lambda self, slot: self._books.of(slot)[
            : len(self._cache.get(slot, ())) // self.info.page_tokens + 1
        ],
    )
    extend = PrefixTree.extend

    def greedy(self: PrefixTree, salt: str, path: list[Page], text: list[int], slot: int) -> None:
        extend(self, salt, path, [*text, *[0] * (-len(text) % 4)], slot)

    patch.setattr(PrefixTree, "extend", greedy)


def leaves_a_seat_behind(patch: pytest.MonkeyPatch) -> None:
    original = Scheduler._done

    def forgetful(self: Scheduler) -> list[int]:
        return original(self)[1:]

    patch.setattr(Scheduler, "_done", forgetful)


BUGS = (
    publishes_what_is_not_sound,
    claims_nothing_for_drafts,
    claims_a_page_too_few,
    keeps_the_pages_of_requests_that_left,
    loses_the_pending_token,
    shares_across_salts,
    gives_up_pages_in_use,
    shares_a_page_that_is_not_full,
    leaves_a_seat_behind,
)


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, KeyError)):
        list(map(simulate, range(SEEDS)))


def test_a_seed_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claims_a_page_too_few(monkeypatch)
    monkeypatch.setattr("sys.argv", ["sim", "--seeds", "32"])
    assert main() == 1
    output = capsys.readouterr()
    seed = output.err.split("--replay ")[1].split()[0]
    monkeypatch.setattr("sys.argv", ["sim", "--replay", seed])
    with pytest.raises((AssertionError, ValueError)):
        main()
