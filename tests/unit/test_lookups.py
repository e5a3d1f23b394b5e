"""What is found, and the trees of it: the compiled classes and their reference in Python."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline import kernels, lookups
from paceline.lookups import reference
from paceline.stores.datastore import Datastore

IMPLEMENTATIONS = [reference, *([kernels.compiled] if kernels.compiled else [])]
TOKENS = st.lists(st.integers(0, 4), min_size=1, max_size=60)
TEXTS = st.lists(st.lists(st.integers(-1, 4), max_size=40), max_size=3)


def arrays(tokens: list[int], vocab_size: int = 9) -> dict[str, np.ndarray]:
    return Datastore.index(np.array(tokens, np.int32), vocab_size).arrays


def agreeing(tokens: list[int], place: int, ending: list[int], most: int) -> int:
    length = 0
    while length < min(most, place, len(ending)) and tokens[place - 1 - length] == ending[length]:
        length += 1
    return length


@pytest.mark.parametrize("module", IMPLEMENTATIONS)
def test_a_text_finds_the_latest_places_that_comparing_all_finds(module) -> None:
    rng = random.Random(2)
    tokens: list[int] = []
    text = module.Text()
    for _ in range(200):
        new = [rng.randrange(6) for _ in range(rng.randint(1, 3))]
        tokens += new
        text.extend(new)
        ending = tokens[:-9:-1]
        places = range(len(tokens) - 1, 0, -1)
        expected = [(agreed, place) for place in places if (agreed := agreeing(tokens, place, ending, 99))]
        assert text.matches(ending, 32) == expected[:32]
    assert len(expected) > 32
    assert text.tokens == tokens
    assert [text.at(place) for place in (0, len(tokens) - 1, len(tokens))] == [tokens[0], tokens[-1], -1]
    assert module.Text(tokens).matches(ending, 32) == expected[:32]


@pytest.mark.parametrize("module", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", range(6))
def test_an_index_finds_the_longest_matches_that_comparing_all_finds(module, seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(-1, 1 + seed) for _ in range(400)]
    index = module.Index(**arrays(tokens))
    for _ in range(30):
        start = rng.randrange(30, 400)
        ending = [token for token in tokens[start - 30 : start][::-1] if token >= 0][: rng.randint(1, 20)]
        if not ending:
            continue
        places = [place for place in range(1, 400) if tokens[place] >= 0]
        expected = {place: length for place in places if (length := agreeing(tokens, place, ending, 16))}
        found = index.matches(ending, 1000)
        assert len(found) == len(expected)
        assert {place: length for length, place in found} == expected
        assert [length for length, _ in found] == sorted(expected.values(), reverse=True)
        few = index.matches(ending, 5)
        assert len(few) == min(5, len(expected))
        assert few[0][0] == found[0][0]
        assert set(few) <= set(found)


@pytest.mark.parametrize("module", IMPLEMENTATIONS)
def test_a_token_that_is_not_there_matches_nothing(module) -> None:
    index = module.Index(**arrays([1, 2, 3]))
    assert [index.matches([token, 1], 10) for token in (7, 8, 9, -1, 1 << 20)] == [[]] * 5
    assert module.Text([1, 2, 3]).matches([3], 10) == []
    with pytest.raises(ValueError, match="has a last token"):
        module.Continuations([])


@pytest.mark.parametrize("module", IMPLEMENTATIONS)
def test_the_tree_of_a_text_that_says_itself_again(module) -> None:
    text = module.Text([1, 2, 3, 1, 2, 4, 1, 2])
    found = module.Continuations([2, 1])
    found.look_in(text, 9, 1.0)
    assert found.longest == 2
    assert found.first() == {4: pytest.approx(0.625 / 2.1), 3: pytest.approx(0.625 / 2.1)}
    tokens, parents, confidences = found.tree(3, 9, 0.01)
    assert (tokens, parents) == ([4, 3, 1], [-1, -1, 0])
    assert confidences[2] == pytest.approx(0.7 / 1.1)
    assert found.tree(3, 1, 0.01)[0] == [4, 3]
    assert found.tree(9, 9, 0.2)[0] == [4]
    assert found.tree(9, 9, 0.01, [0.0])[0] == []


@pytest.mark.skipif(kernels.compiled is None, reason="needs the compiled kernels")
@given(
    text=TOKENS,
    earlier=TEXTS,
    stored=TOKENS,
    nodes=st.integers(0, 20),
    depth=st.integers(0, 9),
    least=st.sampled_from([0.0, 0.003, 0.07]),
    scales=st.lists(st.floats(0, 1), max_size=5),
    marks=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.floats(0.1, 9)), max_size=3),
)
def test_the_compiled_classes_make_the_trees_of_the_reference(
    text, earlier, stored, nodes, depth, least, scales, marks
) -> None:
    grown = []
    for module in IMPLEMENTATIONS:
        found = module.Continuations(text[:-13:-1])
        own = module.Text(text)
        found.look_in(own, 32, 1.0)
        for tokens in earlier:
            found.look_in(module.Text(tokens), 5, 0.1)
        found.look_in(module.Index(**arrays([0, 1, *stored])), 8, 0.5)
        for place, agreed, weight in marks:
            found.add(own, place, agreed, weight)
        grown.append((found.longest, found.first(), found.tree(nodes, depth, least, scales)))
    assert grown[0] == grown[1], "to the last bit"


def test_the_compiled_classes_are_used_where_they_are() -> None:
    assert lookups.Text is (kernels.compiled or reference).Text
    assert lookups.Index is (kernels.compiled or reference).Index
    assert lookups.Continuations is (kernels.compiled or reference).Continuations
