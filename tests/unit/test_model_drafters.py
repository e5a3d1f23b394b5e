"""Drafters that run a model: what they read, what they propose, what they learn, and what they refuse."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paceline.core import Budget, Draft, Scores, Shortcut, Tree, View
from paceline.drafters import load
from paceline.drafters._companion import CHUNK, Companion
from paceline.drafters._vocabulary import Spelling, same_tokens
from paceline.drafters.exit import Exits
from paceline.drafters.skip import TRIAL, Search, spread
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.laws import Controls
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.discovery import drafter, offered
from tests.toys import VOCABULARY, Detached, Letters, Signs, SketchingTable


class Watched(SketchingTable):
    """Notes the size of every pass."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.passes: list[int] = []

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        self.passes.append(len(draft.tokens))
        return super().forward(draft, taps)


def words(count: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCABULARY) for _ in range(count)]


def logits(target: TableTarget, text: Sequence[int]) -> np.ndarray:
    before, last = (0, *text)[-2:]
    return target.table[before, last]


def view(texts: dict[int, list[int]], temperature: float = 0, **params: Any) -> View:
    rows = list(texts.values())
    return View(
        list(texts),
        rows,
        [len(text) - 1 for text in rows],
        [len(text) for text in rows],
        [Controls(SamplingParams(temperature=temperature, **params), (0,), text) for text in rows],
        list(texts),
        [len(text) for text in rows],
        ["d"] * len(rows),
    )


# The model that reads along --------------------------------------------------------------------------------


def test_a_companion_says_what_its_model_says_after_any_path_however_far_it_is_behind() -> None:
    model, rng = SketchingTable(), random.Random(2)
    companion = Companion(model)
    texts = {4: words(300, 2), 9: words(7, 3), 2: words(1, 4)}
    for step in range(30):
        for text in texts.values():
            text += words(rng.choice((0, 1, 3, 9, 200)) if step else 0, rng.random())
        if step == 15:
            companion.release([9])
            texts[9] = words(5, 8)
        paths = [
            (row, path)
            for row in rng.sample(range(3), rng.randint(1, 3))
            for path in [(), (3,), (3, 5), (4,), (4, 1, 2)][: rng.randint(1, 5)]
        ]
        rng.shuffle(paths)
        found = companion.score(list(texts), list(texts.values()), paths)
        for (row, path), one in zip(paths, found, strict=True):
            assert np.array_equal(one, logits(model, [*list(texts.values())[row], *path])), (step, row, path)
        assert all(
            model._cache.get(slot, []) == text[: len(model._cache.get(slot, []))]
            for slot, text in texts.items()
        )


def test_a_companion_reads_a_long_text_in_chunks_and_then_only_what_is_new() -> None:
    model = Watched()
    companion = Companion(model)
    text = words(1000)
    companion.score([0], [text], [(0, ())])
    assert sum(model.passes) < 1000 + 2 * len(model.passes)
    assert max(model.passes) <= CHUNK + 1
    model.passes.clear()
    text += [1, 2, 3]
    companion.score([0], [text], [(0, ())])
    companion.score([0], [text], [(0, (5,)), (0, (6,))])
    assert model.passes == [4, 3]


def test_a_companion_has_no_room_beyond_its_context_and_its_cache() -> None:
    companion = Companion(SketchingTable(max_positions=40, cache_tokens=96, page_tokens=16))
    assert companion.room(0, words(30), 4) == 10
    assert companion.room(0, words(40), 4) == 0
    assert companion.room(1, words(30), 4) == 10
    assert companion.room(2, words(30), 4) == 0, "two sequences hold 48 of 96 tokens each"
    companion.release([0])
    assert companion.room(2, words(30), 4) == 10


def test_a_small_cache_of_the_draft_model_changes_no_answer() -> None:
    target = SketchingTable()
    model = SketchingTable(max_positions=60, cache_tokens=96)
    small = load("draft:model=x,min_probability=0", target.info, **made(model))
    prompts = [words(length, length) for length in (3, 20, 45, 58, 70, 9, 33)]
    params = [SamplingParams(seed=seed, max_tokens=25) for seed in range(len(prompts))]
    engine = Engine(target, {"d": small, "none": load("none", target.info)}, drafter="d", max_batch=4)
    drafted = engine.generate(prompts, params)
    plain = engine.generate(prompts, params, "none")
    assert [c.token_ids for c in drafted] == [c.token_ids for c in plain]
    assert [c.stats.drafted for c in drafted][4] == 0, "its prompt is longer than the model's context"
    assert sum(c.stats.accepted for c in drafted) > 0
    assert not model._cache


def made(model: TableTarget, tokenizer: Any = None) -> dict[str, Any]:
    return {
        "tokenizer": Signs(VOCABULARY),
        "load_model": lambda name, **where: (model, tokenizer or Signs(model.info.vocab_size)),
    }


# What is proposed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("params", [{}, {"repetition_penalty": 1.7, "top_k": 3, "logit_bias": {3: 5.0}}])
def test_a_model_that_is_the_target_is_always_right(params: dict[str, Any], temperature: float) -> None:
    draft = load("draft:model=x,min_probability=0", TableTarget().info, **made(SketchingTable()))
    engine = Engine(TableTarget(), {"d": draft}, drafter="d")
    done = engine.generate(
        words(9), SamplingParams(temperature=temperature, seed=3, max_tokens=61, ignore_eos=True, **params)
    )[0]
    assert done.stats.accepted == done.stats.drafted > 20
    assert done.stats.tokens == done.stats.accepted + done.stats.passes


def test_a_draft_follows_the_requests_controls_and_ends_with_the_answer() -> None:
    model = SketchingTable()
    draft = load("draft:model=x,min_probability=0,widths=1x1x1x1", model.info, **made(model))
    text = words(9)
    likeliest = int(logits(model, text).argmax())
    tree = draft.propose(view({0: text}), [Budget(9, 9)])[0]
    assert tree.tokens[0] == likeliest
    barred = draft.propose(view({0: text}, logit_bias={likeliest: -100.0}), [Budget(9, 9)])[0]
    assert likeliest not in barred.tokens
    ending = draft.propose(view({0: text}, logit_bias={0: 100.0}), [Budget(9, 9)])[0]
    assert list(ending.tokens) == [0]


def test_a_draft_stops_where_it_gets_unlikely() -> None:
    info, sizes = TableTarget().info, []
    for least in (0, 0.2, 0.5):
        draft = load(f"draft:model=x,min_probability={least}", info, **made(SketchingTable()))
        trees = [draft.propose(view({i: words(9, i)}), [Budget(9, 9)])[0] for i in range(20)]
        sizes.append(sum(len(tree.tokens) for tree in trees))
        for tree in trees:
            assert np.prod(tree.confidences) > least or not tree.tokens
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_a_guesser_saves_passes_and_changes_no_draft() -> None:
    class Guess:
        needs: frozenset[str] = frozenset()
        whole = False

        def __init__(self, tokens: Sequence[int]) -> None:
            self.tokens = tokens

        def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
            return [Tree.chain(self.tokens)] * len(budgets)

    model = Watched()
    draft = load("draft:model=x,min_probability=0,drafter=ngram", model.info, **made(model))
    draft._guesser = None  # type: ignore[attr-defined]
    text = words(9)
    wanted = draft.propose(view({0: text}), [Budget(4, 4)])[0]
    assert len(model.passes) == 4
    for guess, passes in ((wanted.tokens, 1), (wanted.tokens[:2], 2), ([(wanted.tokens[0] + 1) % 9], 4)):
        model.passes.clear()
        draft._guesser = Guess(guess)  # type: ignore[attr-defined]
        assert draft.propose(view({0: text}), [Budget(4, 4)])[0][:2] == wanted[:2]
        assert len(model.passes) == passes


# Two vocabularies ------------------------------------------------------------------------------------------


class Mixed(Letters):
    """The letters in another order, "b" and "c" as one token, and none for "l"."""

    PIECES = ("", "e", "d", "bc", "a", "k", "j", "i", "h", "g", "f", "b")

    def piece(self, token_id: int) -> bytes:
        return self.PIECES[token_id].encode()

    def encode_part(self, text: str) -> list[int]:
        ids = []
        while text:
            best = max((p for p in self.PIECES if p and text.startswith(p)), key=len, default="")
            ids += [self.PIECES.index(best)] if best else []
            text = text[max(1, len(best)) :]
        return ids

    def encode(self, text: str) -> list[int]:
        return [4, *self.encode_part(text)]


def test_tokens_are_shared_by_their_bytes_and_spelled_where_they_are_not() -> None:
    letters, mixed = Letters(VOCABULARY), Mixed()
    assert not same_tokens(letters, mixed)
    assert same_tokens(letters, Letters(VOCABULARY))
    there, back = Spelling(letters, mixed), Spelling(mixed, letters)
    assert [letters.piece(t) for t in there.shared[0]] == [mixed.piece(t) for t in there.shared[1]]
    assert {letters.piece(t).decode() for t in there.shared[0]} == set("bdefghijk")
    assert there.spell(4) == (1,)
    assert there.spell(0) == there.spell(11) == ()
    assert back.spell(3) == (1, 2)
    assert there.start() == [4]


@pytest.mark.parametrize("spec", ["draft:model=x,vocabulary=shared", "slem:model=x,tokens=3"])
def test_a_model_with_other_tokens_reads_the_text_and_drafts_tokens_of_the_target(spec: str) -> None:
    model = Watched()
    drafter = load(
        f"{spec},min_probability=0", TableTarget().info, **made(model, Mixed(VOCABULARY)) | LETTERS
    )
    text = [1, 2, 4, 11, 5]  # "bcelf"
    tree = drafter.propose(view({0: text}), [Budget(3, 3)])[0]
    spelled = [4, 11, 1, 10]  # start, "b", "c" has no token of its own, "e", "f"
    first = logits(model, spelled)
    if spec.startswith("draft"):
        shared = {11: 1, 1: 4, 2: 3, 5: 10, 6: 9, 7: 8, 8: 7, 9: 6, 10: 5}  # theirs: ours
        best = max(shared, key=lambda token: first[token])
        assert tree.tokens[0] == shared[best]
        assert set(tree.tokens) <= set(shared.values())
    else:
        expected = Mixed.PIECES[int(first.argmax())]
        assert "".join(chr(97 + token) for token in tree.tokens).startswith(expected)
        assert not tree.origins
        assert 0 < tree.confidences[0] <= 1


LETTERS = {"tokenizer": Letters(VOCABULARY)}


# What is learned -------------------------------------------------------------------------------------------


def test_the_search_finds_the_layers_that_do_not_matter() -> None:
    useless = {2, 5, 7, 8}
    search, rng = Search(12, spread(12, 0.4), 4), random.Random(3)
    count = len(search.best)
    for _ in range(6000):
        skipped, _ = search.shortcut()
        rate = 0.95 - 0.2 * len(skipped.skipped - useless)
        search.learn(4, sum(rng.random() < rate for _ in range(4)))
        assert len(skipped.skipped) == count
        assert not skipped.skipped & {0, 11}
    assert len(useless & search.best) >= 3
    assert TRIAL < 6000


def test_the_search_wanders_less_once_it_finds_nothing_better() -> None:
    search = Search(12, spread(12, 0.4), 4)
    best, others = search.best, 0
    for _ in range(2000):
        now = search.shortcut()[0].skipped
        others += now != best
        search.learn(4, 4 if now == best else 1)
    assert search.best == best
    assert others < 2000 / 5


def test_the_exit_that_brings_most_per_layer_is_chosen_and_a_change_is_noticed() -> None:
    passes = {exit: Shortcut(frozenset(range(exit, 20))) for exit in (4, 8, 12, 16)}
    exits, rng = Exits(20, passes, 4), random.Random(1)
    for rates, best in (({4: 0.1, 8: 0.85, 12: 0.9, 16: 0.95}, 8), ({4: 0.9, 8: 0.2, 12: 0.3, 16: 0.3}, 4)):
        used = []
        for _ in range(1500):
            shortcut, depth = exits.shortcut()
            assert shortcut.skipped == frozenset(range(exits.exit, 20))
            assert 1 <= depth <= 4
            used.append(exits.exit)
            accepted = 0
            while accepted < depth and rng.random() < rates[exits.exit]:
                accepted += 1
            exits.learn(min(depth, accepted + 1), accepted)
        assert used[-500:].count(best) > 350


def test_self_drafters_learn_from_what_was_accepted() -> None:
    target = SketchingTable()
    for spec in ("exit:min_probability=0", "skip:min_probability=0"):
        made = drafter(spec, target)
        seen: list[tuple[int, int]] = []
        made._choice.learn = lambda tried, accepted, seen=seen: seen.append((tried, accepted))  # type: ignore[attr-defined]
        engine = Engine(target, {"d": made}, drafter="d")
        done = engine.generate([words(5), words(9)], SamplingParams(seed=1, max_tokens=40, ignore_eos=True))
        assert sum(accepted for _, accepted in seen) >= sum(c.stats.accepted for c in done) > 0
        assert all(0 <= accepted <= tried for tried, accepted in seen)


# What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("draft:widths=1", "draft:model must name a model"),
        ("draft:model=x,widths=0", "draft:widths must be numbers from 1 to 64 with x between, got '0'"),
        ("draft:model=x,min_probability=1", "draft:min_probability must be at least 0, below 1, got 1.0"),
        ("draft:model=x,drawn=twice", "draft:drawn must be iid or without_replacement, got 'twice'"),
        ("draft:model=x,vocabulary=mine", "draft:vocabulary must be same or shared, got 'mine'"),
        ("draft:model=x,vocabulary=shared,drafter=ngram", "draft:drafter needs draft:vocabulary=same"),
        ("draft:model=x,drafter=skip", "drafter skip needs a sketch"),
        ("draft:model=x,drafter=nobody", "there is no drafter 'nobody'"),
        ("slem:tokens=2", "slem:model must name a model"),
        ("slem:model=x,tokens=0", "slem:tokens must be at least 1, got 0"),
        ("skip:share=1", "skip:share must be above 0, below 1, got 1.0"),
        ("exit:layers=4", "exit:layers must be from 1 to 3, or 0 to choose, got 4"),
        ("sparse:recent=0", "sparse:recent must be 1 to"),
        ("sparse:sinks=-1", "sparse:sinks must be 0 to"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        drafter(spec, Detached())


@pytest.mark.parametrize("name", ["skip", "exit", "sparse", "draft:model=x", "slem:model=x"])
def test_what_a_target_does_not_offer_is_said_by_name(name: str) -> None:
    with pytest.raises(IncompatibleDrafter, match=r"drafter \w+ needs a \w+, and table offers none"):
        load(name, TableTarget().info)


def test_a_model_with_another_vocabulary_is_refused_and_told_what_to_do() -> None:
    with pytest.raises(
        IncompatibleDrafter, match=r"table and table have different tokens; use .*=shared.*slem"
    ):
        load("draft:model=x", TableTarget().info, **offered(Detached()) | {"load_model": other})
    with pytest.raises(IncompatibleDrafter, match="have different tokens"):
        load("draft:model=x", TableTarget().info, **made(TableTarget(), Mixed(VOCABULARY)))


def other(name: str, **where: Any) -> tuple[TableTarget, None]:
    return TableTarget(7), None


def test_a_target_with_too_few_layers_is_refused() -> None:
    info = replace(Detached().info, layers=1)
    for name in ("skip", "exit"):
        with pytest.raises(ConfigError, match=f"{name} needs a target of at least . layers, table has 1"):
            load(name, info, **offered(Detached()))
