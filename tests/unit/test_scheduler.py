"""Who advances, by how much, and who waits: docs/scheduling.md."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from paceline.core import Budget, Drafter, Step, Tree, View
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, QueueFull
from paceline.policies._cost import PassCost
from paceline.policies.throughput import build as throughput
from paceline.results import Completion, Event, Load
from paceline.sampling import SamplingParams
from paceline.scheduler import portions
from paceline.targets.table import TableTarget
from tests.toys import VOCABULARY, HalfRight, Known, Letters, Oracle


class Watched(TableTarget):
    """Notes the rows of every pass: slot, first position, tokens."""

    def __init__(self, **options: int) -> None:
        super().__init__(VOCABULARY, **options)
        self.passes: list[list[tuple[int, int, int]]] = []

    def forward(self, draft, taps):
        sizes = draft.offsets[1:] - draft.offsets[:-1]
        rows = zip(draft.slots.tolist(), draft.starts.tolist(), sizes.tolist(), strict=True)
        self.passes.append(list(rows))
        return super().forward(draft, taps)


def engine(drafter: Drafter | None = None, target: TableTarget | None = None, **options: object) -> Engine:
    target = target or Watched()
    drafters = {"none": load("none", target.info)}
    if drafter is not None:
        drafters["d"] = drafter
    return Engine(target, drafters, drafter=list(drafters)[-1], **{"tokenizer": Letters(), **options})


def params(**fields: object) -> SamplingParams:
    return SamplingParams(**{"seed": 1, "ignore_eos": True, "max_tokens": 12, **fields})


def finish(one: Engine) -> dict[int, Completion]:
    """The completions of all that wait or run."""
    events: list[Event] = []
    while not one.idle:
        events += one.step()
    return {event.request: event.finish for event in events if event.finish}


FULL = engine().generate([1, 2], params())[0]


@pytest.mark.parametrize(
    ("limit", "drafted"), [(None, 15), (Budget(0, 0), 0), (Budget(0, 5), 0), (Budget(5, 0), 0)]
)
def test_a_request_s_limit_switches_its_drafting_off(limit: Budget | None, drafted: int) -> None:
    done = engine(Oracle({1: FULL.token_ids})).generate([1, 2], params(), limit=limit)[0]
    assert done.token_ids == FULL.token_ids
    assert bool(done.stats.drafted) == bool(drafted)


@pytest.mark.parametrize("limit", [Budget(1, 9), Budget(3, 9), Budget(9, 2)])
def test_a_request_s_limit_holds_for_it_alone(limit: Budget) -> None:
    one = engine(Oracle({1: FULL.token_ids}), nodes=16)
    ids = [one.submit([1, 2], params(), limit=given) for given in (limit, None)]
    done = finish(one)
    assert {completion.token_ids for completion in done.values()} == {FULL.token_ids}
    most = max(done[ids[0]].stats.accepted_lengths)
    assert most == min(limit)
    assert max(done[ids[1]].stats.accepted_lengths) > most
    *_, last = one.stream([1, 2], params(), limit=limit)
    assert last.finish.stats == done[ids[0]].stats


@pytest.mark.parametrize("limit", [(1, 2), Budget(-1, 2), Budget(1, -1), Budget(1.0, 2), 3])
def test_a_limit_that_is_none_is_refused(limit: object) -> None:
    with pytest.raises(ConfigError, match="limit must be a Budget of whole numbers, 0 or more; got "):
        engine().submit([1], limit=limit)


def test_no_more_requests_wait_than_may() -> None:
    busy = engine(max_batch=2, max_waiting=1)
    ids = [busy.submit([1], params()) for _ in range(3)]
    for call in (busy.submit, busy.stream):
        with pytest.raises(QueueFull, match="3 requests wait, as many as may; try again later"):
            call([1])
    busy.step()
    with pytest.raises(QueueFull, match="1 requests wait"):
        busy.submit([1])
    busy.cancel(ids[2])
    ids.append(busy.submit([1], params()))
    assert len(finish(busy)) >= 3
    none = engine(max_batch=1, max_waiting=0)
    none.submit([1], params())
    with pytest.raises(QueueFull):
        none.submit([1])


def test_generate_brings_as_many_requests_as_it_likes() -> None:
    done = engine(max_batch=1, max_waiting=0).generate([[1, 2]] * 5, params())
    assert {completion.token_ids for completion in done} == {FULL.token_ids}


def test_a_queue_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_waiting must be at least 0, or None, got -1"):
        engine(max_waiting=-1)


def test_the_load_tells_who_runs_and_waits_and_what_the_cache_is_used_for() -> None:
    busy = engine(target=Watched(cache_tokens=160), max_batch=2)
    assert busy.load == Load(0, 0, 160, 0, 0, 0, 0, {}, frozenset())
    ids = [busy.submit([1] * length, params(seed=length)) for length in (20, 3, 20)]
    assert (busy.load.running, busy.load.waiting) == (0, 3)
    busy.step()
    assert (busy.load.running, busy.load.waiting) == (2, 1)
    assert busy.load.cache_tokens_used == 32 + 16
    busy.preempt(ids[1])
    assert busy.load.preemptions == 1
    assert busy.load.cache_tokens_used == 32
    finish(busy)
    idle = busy.load
    assert (idle.running, idle.waiting, idle.cache_tokens_used) == (0, 0, 0)
    assert idle.prefix_lookup_tokens == 20 + 3 + 20 + 4  # once more for the one that lost its place
    assert idle.prefix_hit_tokens == 16


def test_requests_that_decode_go_first_and_prompts_get_what_is_left() -> None:
    target = Watched()
    mixed = engine(target=target, chunk_tokens=20, max_batch=4)
    for _ in range(3):
        mixed.submit([1], params())
    mixed.step()
    mixed.submit([1, 2] * 20, params())
    mixed.step()
    assert target.passes[-1] == [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 0, 17)]


def test_prompts_share_a_step_evenly_and_a_short_one_does_not_wait_for_a_long_one() -> None:
    target = Watched()
    mixed = engine(target=target, chunk_tokens=64, max_batch=3)
    long, short = mixed.submit([1] * 300, params()), mixed.submit([2] * 40, params())
    seen = [{event.request for event in mixed.step()} for _ in range(2)]
    assert target.passes == [[(0, 0, 32), (1, 0, 32)], [(0, 32, 56), (1, 32, 8)]]
    assert seen == [set(), {short}]
    assert finish(mixed)[long].token_ids == engine().generate([1] * 300, params())[0].token_ids


def test_a_batch_that_decodes_leaves_at_least_a_page_for_prompts() -> None:
    target = Watched()
    full = engine(target=target, chunk_tokens=16, max_batch=20)
    for _ in range(19):
        full.submit([1], params(max_tokens=40))
    full.step()
    full.submit([3] * 40, params())
    sizes = [full.step() and target.passes[-1][-1] for _ in range(3)]
    assert sizes == [(19, 0, 16), (19, 16, 16), (19, 32, 8)]


@pytest.mark.parametrize(
    ("needs", "left", "least", "given"),
    [
        ([10, 10], 20, 4, [10, 10]),
        ([100, 3, 100], 31, 4, [14, 3, 14]),
        ([100, 100, 100], 10, 4, [4, 4, 2]),
        ([100, 2], 50, 16, [48, 2]),
        ([5, 5], 3, 16, [3, 0]),
        ([7], 0, 1, [0]),
        ([], 9, 1, []),
    ],
)
def test_portions(needs: list[int], left: int, least: int, given: list[int]) -> None:
    assert portions(needs, left, least) == given


def test_a_request_is_let_in_with_what_it_has_and_gets_pages_as_it_grows() -> None:
    busy = engine(target=Watched(cache_tokens=96), max_batch=4)
    for seed in range(4):  # 80 tokens each in the end
        busy.submit([1], params(seed=seed, max_tokens=79))
    busy.step()
    assert busy.load.running == 4
    done = finish(busy)
    assert busy.load.preemptions > 0
    for seed, completion in done.items():
        alone = engine().generate([1], params(seed=seed, max_tokens=79))[0]
        assert completion.token_ids == alone.token_ids


def test_the_newest_loses_its_place_and_the_oldest_never_does() -> None:
    busy = engine(target=Watched(cache_tokens=96), max_batch=3)
    ids = [busy.submit([1], params(seed=seed, max_tokens=79)) for seed in range(3)]
    ended: list[int] = []
    lost: set[int] = set()
    while not busy.idle:
        before = {request.id for request in busy._scheduler._running}
        ended += [event.request for event in busy.step() if event.finish]
        lost |= before - {request.id for request in busy._scheduler._running} - set(ended)
    assert ended == ids
    assert lost == set(ids[1:])


class Unsure(HalfRight):
    """Right in 7 of 10 tokens, and says so."""

    def row(self, view: View, row: int, budget: Budget) -> Tree:
        tree = super().row(view, row, budget)
        return tree._replace(confidences=[0.7] * len(tree.tokens))


def drafted_per_answer_token(batch: int) -> float:
    """With passes that cost nothing more up to 8 tokens, and in proportion from there on."""
    cost = PassCost({1: 1.0, 8: 1.05, 16: 2.1, 32: 4.2, 64: 8.4})
    answers = engine().generate([[1, 2]] * batch, [params(seed=s, max_tokens=40) for s in range(batch)])
    known = {done.seed: done.token_ids for done in answers}
    busy = engine(Unsure(known), policy=throughput(cost), max_batch=batch, nodes=16, clock=lambda: 0.0)
    done = busy.generate([[1, 2]] * batch, [params(seed=s, max_tokens=40) for s in range(batch)])
    assert [a.token_ids for a in done] == [a.token_ids for a in answers]
    return sum(a.stats.drafted for a in done) / sum(a.stats.tokens for a in done)


def test_speculation_shrinks_to_nothing_as_the_batch_fills() -> None:
    amounts = [drafted_per_answer_token(batch) for batch in (1, 2, 4, 8, 16)]
    assert amounts[0] > 1
    assert amounts == sorted(amounts, reverse=True)
    assert amounts[-1] < 0.02


def test_answers_to_one_prompt_that_come_together_read_it_once() -> None:
    target = Watched()
    one = engine(target=target, chunk_tokens=32, max_batch=6)
    prompt = [1 + place % 11 for place in range(100)]
    together = one.generate([prompt] * 2, params(), n=3)
    read = sum(tokens for rows in target.passes for *_, tokens in rows if tokens > 1)
    assert read == 100 + 5 * 4
    assert one.load.prefix_hit_tokens == 5 * 96
    alone = engine(max_batch=1).generate([prompt] * 2, params(), n=3)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_who_waits_for_another_s_prompt_goes_on_without_it_and_holds_nobody_up() -> None:
    target = Watched()
    one = engine(target=target, chunk_tokens=32, max_batch=6)
    prompt = [1 + place % 11 for place in range(100)]
    first, second, other = (one.submit(text, params()) for text in (prompt, [*prompt[:50], 3], [7] * 9))
    seen = [{event.request for event in one.step()} for _ in range(2)]
    assert seen[0] == {other}, "which waits for nobody"
    assert {slot for rows in target.passes for slot, *_ in rows} == {0, 2}
    one.cancel(first)
    one.step()
    assert target.passes[-1][0] == (1, 0, 31)
    done = finish(one)
    assert done[second].token_ids == engine().generate([[*prompt[:50], 3]], params())[0].token_ids


class Needy(Known):
    """Wants the features of every token, and notes which positions it saw."""

    needs = frozenset({"last"})
    whole = True

    def __init__(self) -> None:
        super().__init__({})
        self.seen: list[int] = []

    def observe(self, step: Step) -> None:
        self.seen += range(step.view.starts[0], step.view.ends[0])


def test_who_needs_features_sees_those_of_the_whole_prompt() -> None:
    needy = Needy()
    one = engine(needy)
    for _ in range(2):
        one.generate([1] * 50, params(max_tokens=1), "none")
        assert needy.seen == []
    for _ in range(2):
        one.generate([1] * 50, params(max_tokens=1), "d")
        assert needy.seen == list(range(50))
        needy.seen.clear()
    assert one.load.prefix_hit_tokens == 48


def test_who_needs_those_of_the_last_token_alone_shares_prefixes() -> None:
    needy = Needy()
    needy.whole = False
    one = engine(needy)
    one.generate([1] * 50, params(max_tokens=1), "none")
    one.generate([1] * 50, params(max_tokens=1), "d")
    assert needy.seen == [48, 49]
    assert one.load.prefix_hit_tokens == 48


def test_prefixes_are_found_by_page_and_only_under_their_salt() -> None:
    one = engine()

    def hits(prompt: Sequence[int], salt: str = "") -> int:
        before = one.load.prefix_hit_tokens
        one.submit(prompt, params(max_tokens=1), cache_salt=salt)
        finish(one)
        return one.load.prefix_hit_tokens - before

    text = [1 + place % 11 for place in range(40)]
    assert hits(text) == 0
    assert hits(text) == 32
    assert hits(text[:32]) == 16, "the last token is always read"
    assert hits([*text[:31], 0, *text[32:]]) == 16
    assert hits([0, *text[1:]]) == 0
    assert hits(text, "mine") == 0
    assert hits(text, "mine") == 32
    assert hits(text, "yours") == 0


def test_engines_that_share_no_prefixes_may_use_one_target_in_turn() -> None:
    target = Watched(cache_tokens=64)
    for _ in range(3):
        one = engine(target=target, share_prefixes=False)
        for _ in range(2):
            assert one.generate([1] * 40, params())[0].finish_reason == "length"
        assert one.load.prefix_lookup_tokens == 0
        assert target.free_pages == 4


def test_the_next_turn_of_a_conversation_finds_the_answer_too() -> None:
    one = engine()
    first = one.generate([1] * 10, params(max_tokens=40))[0]
    one.generate([*[1] * 10, *first.token_ids, 2, 3], params(max_tokens=1))
    assert one.load.prefix_hit_tokens == 48, "all but the last token of the answer was committed"


def test_logits_that_are_no_numbers_end_their_request_alone_and_leave_no_pages() -> None:
    class Ill(Watched):
        at = -1

        def forward(self, draft, taps):
            scores = super().forward(draft, taps)
            for place, node in enumerate(draft.scored.tolist()):
                if draft.slots[0] == 0 and draft.positions[node] == self.at and node < draft.offsets[1]:
                    scores.logits[place, 3] = float("nan")
            return scores

    for at, tokens in ((19, 0), (24, 5)):
        target = Ill()
        one = engine(target=target)
        target.at = at
        ids = [one.submit([4] * 20, params(logprobs=1)), one.submit([1, 2], params())]
        done = finish(one)
        assert done[ids[1]].token_ids == FULL.token_ids
        failed = done[ids[0]]
        assert (failed.finish_reason, len(failed.token_ids), len(failed.logprobs)) == (
            "error",
            tokens,
            tokens,
        )
        assert failed.stop_reason == (
            f"the target gave logits that are not finite, for the token at position {at + 1}"
        )
        target.at = -1
        again = one.generate([4] * 20, params())[0]
        assert one.load.prefix_hit_tokens == 0
        assert again.token_ids[:tokens] == failed.token_ids
