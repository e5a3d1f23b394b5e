"""Loading drafters by name, and what n-gram and suffix drafters propose."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest

from paceline.core import Budget, Drafter, Tree, View
from paceline.drafters import load, names, options
from paceline.drafters.none import Plain
from paceline.drafters.suffix import Store
from paceline.errors import ConfigError
from paceline.targets.table import TableTarget

INFO = TableTarget(40).info


def propose(drafter: Drafter, *texts: Sequence[int], prompt: int = 1) -> Tree:
    rows = len(texts)
    view = View(
        list(range(rows)),
        texts,
        [len(text) - 1 for text in texts],
        [len(text) for text in texts],
        [None] * rows,
        [0] * rows,
        [prompt] * rows,
        ["d"] * rows,
    )
    tree = drafter.propose(view, [Budget(16, 16)] * rows)[0]
    return Tree(list(tree.tokens), list(tree.parents))


def paths(tree: Tree) -> set[tuple[int, ...]]:
    """Every node's path of tokens from the root."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return set(found)


def test_drafters_are_found_by_their_files() -> None:
    assert {"none", "ngram", "suffix"} <= set(names())
    assert options("ngram") == {"tokens": 7, "longest": 3, "shortest": 2}
    assert set(options("suffix")) == {
        "max_nodes",
        "min_probability",
        "max_match",
        "store_tokens",
        "store",
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("eagle9", "there is no drafter 'eagle9'; there are .*ngram, none, .*suffix"),
        ("none:x=1", "drafter none has no option 'x'; it has none at all"),
        ("ngram:tokens=many", "ngram:tokens must be a whole number, got 'many'"),
        ("ngram:tokens", "ngram:tokens must be a whole number, got ''"),
        ("ngram:tokens=0", "ngram:tokens must be at least 1"),
        ("ngram:shortest=4", r"ngram:shortest must be from 1 to longest \(3\), got 4"),
        ("suffix:max_nodes=0", "suffix:max_nodes must be at least 1"),
        ("suffix:min_probability=x", "suffix:min_probability must be a number"),
        ("suffix:min_probability=nan", "suffix:min_probability must be above 0, up to 1"),
        ("suffix:max_match=0", "suffix:max_match must be at least 1"),
        ("suffix:store_tokens=-1", "suffix:store_tokens must be 0 or more"),
    ],
)
def test_a_wrong_name_or_option_is_refused_with_the_legal_ones(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spec, INFO)


def test_drafters_of_other_packages_come_through_their_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("silent", "paceline.drafters.none:build", "paceline.drafters")
    monkeypatch.setattr("paceline.plugins.entry_points", lambda group: [entry])
    assert "silent" in names()
    assert isinstance(load("silent", INFO), Plain)


def test_ngram_continues_the_latest_earlier_occurrence_of_the_longest_run() -> None:
    ngram = load("ngram:tokens=3", INFO)
    assert propose(ngram, [1, 2, 3, 4, 5, 2, 3, 6, 7, 8, 2, 3]).tokens == [6, 7, 8]
    longer = [9, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 9, 2, 3]
    assert propose(load("ngram:tokens=3", INFO), longer).tokens == [4, 5, 1]
    assert propose(load("ngram", INFO), [1, 2, 3]).tokens == []


def test_ngram_reading_token_by_token_equals_reading_at_once() -> None:
    rng = random.Random(1)
    text = [rng.randrange(4) for _ in range(300)]
    growing = load("ngram:shortest=1", INFO)
    for length in range(1, 300):
        assert propose(growing, text[:length]) == propose(load("ngram:shortest=1", INFO), text[:length])


def test_suffix_follows_the_longest_match_first() -> None:
    text = [7, 1, 2, 3, 11, 12, 8, 2, 3, 21, 22, 7, 1, 2, 3]
    tree = propose(load("suffix:min_probability=0.01", INFO), text)
    assert tree.tokens[0] == 11
    assert (11, 12) in paths(tree)
    assert (21,) in paths(tree), "the shorter match is a branch"


def test_suffix_prefers_the_continuation_that_came_more_often() -> None:
    text = [5, 1, 6, 5, 2, 7, 5, 1, 8, 5]
    assert propose(load("suffix", INFO), text).tokens[0] == 1


def test_suffix_stops_where_it_no_longer_pays() -> None:
    text = [*range(10, 30), 1, 2, *range(10, 13)]
    drafters = [load(f"suffix:max_nodes=15,min_probability={p}", INFO) for p in (0.001, 0.05, 0.2)]
    sizes = [len(propose(drafter, text).tokens) for drafter in drafters]
    assert sizes[0] == 15 > sizes[1] > sizes[2] >= 1
    assert propose(load("suffix:min_probability=1", INFO), text).tokens == []


def test_suffix_learns_answers_and_not_prompts_when_a_request_ends() -> None:
    suffix = load("suffix", INFO)
    propose(suffix, [30, 31, 32, 1, 2, 3, 4, 5, 6], prompt=3)
    assert propose(load("suffix", INFO), [9, 2, 3]).tokens == []
    suffix.release([0])
    assert propose(suffix, [9, 2, 3]).tokens[:3] == [4, 5, 6]
    suffix.release([0])
    assert propose(suffix, [9, 30, 31]).tokens == []


def test_suffix_prefers_the_request_itself_to_earlier_answers() -> None:
    suffix = load("suffix", INFO)
    for _ in range(3):
        propose(suffix, [30, 1, 2, 3, 4, 5, 6], prompt=1)
        suffix.release([0])
    assert propose(suffix, [2, 3, 14, 15, 2, 3]).tokens[0] == 14


def test_suffix_does_not_run_from_one_stored_answer_into_the_next() -> None:
    suffix = load("suffix:min_probability=1e-6", INFO)
    for answer in ([1, 2], [3, 4]):
        propose(suffix, [30, *answer])
        suffix.release([0])
    assert paths(propose(suffix, [9, 1])) == {(2,)}


def test_the_store_is_bounded_and_forgets_the_oldest() -> None:
    store = Store(100)
    for number in range(50):
        store.add([number] * 9)
        assert sum(map(len, store.texts)) <= 100
    kept = {token for text in store.texts for token in text.tokens}
    assert 49 in kept
    assert 0 not in kept
    store.add(list(range(500)))
    assert sum(map(len, store.texts)) <= 100
    empty = Store(0)
    empty.add([1, 2, 3])
    assert not any(map(len, empty.texts))
