"""Noise is what it says, and the fast laws along paths agree with the slow reference."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paceline.core import Draft, Lane, Scores, Tree, View
from paceline.device import OnDevice
from paceline.grammar import Grammar, Grammars
from paceline.laws import Controls, Laws
from paceline.noise import Noise, bits, choice_seed, gumbel
from paceline.sampling import Context, SamplingParams, log_law, warp
from tests.chi_square import chi_square
from tests.toys import Letters

MASK = 2**64 - 1
KEY = 17541442556454691068
CHOICE = 5407548344558023628
GUMBEL = [0.6955078971364762, 0.7780993364510098]


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_bits_are_the_stream_of_splitmix64() -> None:
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # published for state 0
    assert bits(0, 3).tolist() == known
    key = Noise([7]).key(0, Lane.DRAFT, 123)
    assert bits(key, 50).tolist() == [mix((key + (t + 1) * 0x9E3779B97F4A7C15) & MASK) for t in range(50)]


def test_a_key_depends_on_seed_lane_and_position_only() -> None:
    noise = Noise([5, 6, 5])
    keys = {noise.key(row, lane, p) for row in (0, 1) for lane in Lane for p in range(100)}
    assert len(keys) == 2 * len(Lane) * 100
    assert noise.key(0, Lane.TARGET, 9) == noise.key(2, Lane.TARGET, 9) == Noise([5]).key(0, Lane(0), 9)
    assert all(0 <= key <= MASK for key in keys)


def test_keys_and_gumbel_noise_stay_as_they_are() -> None:
    """A change here changes every answer ever given for a seed."""
    assert Noise([42]).key(0, Lane.TARGET, 10) == KEY
    assert gumbel(KEY, 2).tolist() == pytest.approx(GUMBEL, rel=1e-12)


def test_answers_to_one_prompt_have_seeds_of_their_own_and_share_no_noise() -> None:
    seeds = [choice_seed(seed, index) for seed in (0, 7, 2**63 - 1) for index in range(128)]
    assert [seeds[0], seeds[128], seeds[256]] == [0, 7, 2**63 - 1]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    keys = {Noise([seed]).key(0, lane, p) for seed in seeds for lane in Lane for p in range(20)}
    assert len(keys) == len(seeds) * len(Lane) * 20
    assert choice_seed(42, 1) == CHOICE, "a change here changes answers given for a seed"


def test_the_largest_log_probability_plus_noise_is_a_draw_from_the_law() -> None:
    law = np.array([0.5, 0.25, 0.15, 0.1])
    noise = Noise([3])
    drawn = [int((np.log(law) + gumbel(noise.key(0, Lane(0), p), 4)).argmax()) for p in range(20_000)]
    assert chi_square(drawn, dict(enumerate(law))) > 1e-3
    assert chi_square(drawn, dict(enumerate([0.45, 0.3, 0.15, 0.1]))) < 1e-6


def swaying(tokens: Sequence[int], logits: Any) -> Any:
    """A processor whose result depends on the text."""
    return logits * (1 + sum(tokens) % 5)


SETTINGS = (
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.4},
    {"temperature": 0.8, "top_k": 7, "top_p": 0.9},
    {"repetition_penalty": 1.5, "presence_penalty": 0.7, "frequency_penalty": -0.3},
    {"repetition_penalty": 2.0},
    {"frequency_penalty": 0.5, "logit_bias": {3: 2.5, 4: -3}},
    {"min_tokens": 6, "min_p": 0.1},
    {"bad_words": ((3,), (4, 5), (4, 4, 6), (7, 8, 9)), "top_p": 0.7},
    {"temperature": 0, "bad_words": ((2, 3), (3,))},
    {"logits_processor": swaying, "logit_bias": {3: 2.5}},
    {"grammar": Grammar.regex("[b-j]*"), "bad_words": ((4, 5),)},
    {"grammar": Grammar.lark('start: "c" start "d" | /[e-j]{0,5}/'), "presence_penalty": 1.0},
)


class Alphabet(Letters):
    """All letters, of which the first is the end."""

    vocab_size = 20

    def encode_part(self, text: str) -> list[int]:
        return self.encode(text)


GRAMMARS = Grammars(Alphabet(), 20, {0, 1})


def matches(grammar: Grammar, tokens: list[int]) -> bool:
    """By hand, whether the tokens stand for a whole text of one of the two grammars above."""
    text = "".join(chr(97 + token) for token in tokens)
    if grammar.kind == "regex":
        return re.fullmatch("[c-j]*", text) is not None  # token 1, "b", is an ending token
    return (found := re.fullmatch("(c*)[e-j]{0,5}(d*)", text)) is not None and len(found[1]) == len(found[2])


def allowed(grammar: Grammar, answer: list[int]) -> list[bool] | None:
    """By hand, the tokens that some whole text of the grammar goes on with, and the ends."""
    ends = [[], *([3] * count for count in range(1, 9))]

    def begins(tokens: list[int]) -> bool:
        return any(matches(grammar, [*tokens, *end]) for end in ends)

    if not begins(answer):
        return None
    going_on = [begins([*answer, token]) for token in range(20)]
    return [whole or (token < 2 and matches(grammar, answer)) for token, whole in enumerate(going_on)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_laws_and_draws_along_a_path_agree_with_warp(setting: dict[str, Any], dtype: type) -> None:
    rng = random.Random(1)
    vocabulary = 20
    compared = 0
    for seed in range(60):
        params = SamplingParams(seed=seed, **setting)
        grammar = params.grammar
        prompt = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 400))]
        matcher = None if grammar is None else GRAMMARS.matcher(grammar)
        controls = Controls(params, {0, 1}, prompt, params.bad_words, matcher)
        if matcher is None:
            answer = [rng.randrange(vocabulary) for _ in range(rng.randint(0, 9))]
        else:
            answer = [2] * rng.randint(0, 3)
            assert matcher.advance(answer) == (len(answer), False)
        controls.answered(answer)
        size = rng.randint(0, 6)
        tokens = [rng.choice((2, 3, 4, 5, 6, 9, 12) if matcher else range(vocabulary)) for _ in range(size)]
        tree = Tree(tokens, [rng.randint(-1, n - 1) for n in range(size)])
        text = prompt + answer
        view = View([0], [text], [len(text) - 1], [len(text)], [controls], [seed], [len(prompt)], ["d"])
        draft = Draft.pack(view, [tree])
        logits = np.random.default_rng(seed).normal(0, 3, (len(draft.scored), vocabulary)).astype(dtype)
        before = logits.copy()
        laws, noise = Laws(Scores(logits), draft, view), Noise(view.seeds)
        for place, node in enumerate(draft.scored.tolist()):
            path = laws._path(0, node)
            possible = None if grammar is None else allowed(grammar, answer + path)
            if grammar is not None and possible is None:
                laws.draw(node, noise)  # nobody gets there, and nothing breaks
                continue
            context = Context(prompt, answer + path, frozenset({0, 1}), params.bad_words, possible)
            expected = warp(before[place], params, context)
            np.testing.assert_array_equal(laws.log_law(node), expected)
            np.testing.assert_array_equal(laws.law(node), np.exp(expected))
            key = noise.key(0, Lane.TARGET, int(draft.positions[node]) + 1)
            assert laws.draw(node, noise) == int((expected + gumbel(key, vocabulary)).argmax())
            compared += bool(path)
        assert not controls.failures
        assert (logits == before).all()
    assert compared > 20


def test_penalties_of_more_tokens_than_were_foreseen_agree_with_warp() -> None:
    rng = random.Random(4)
    params = SamplingParams(repetition_penalty=1.4, frequency_penalty=0.5, presence_penalty=-0.5)
    prompt, answer = ([rng.randrange(2000) for _ in range(count)] for count in (700, 500))
    controls = Controls(params, (), prompt)
    controls.answered(answer)
    logits = np.random.default_rng(0).normal(0, 3, 2000)
    path = [rng.randrange(2000) for _ in range(300)]
    adjusted = controls.adjust(logits, len(answer) + len(path), path)
    expected = warp(logits, params, Context(prompt, answer + path, frozenset()))
    np.testing.assert_array_equal(log_law(adjusted, params), expected)


def test_every_row_has_its_own_controls_and_noise() -> None:
    params = [SamplingParams(seed=seed, temperature=t) for seed, t in ((1, 0.5), (2, 1.5), (3, 1.0))]
    texts = [[1, 2], [3], [4, 5, 6]]
    view = View(
        [0, 1, 2],
        texts,
        [len(text) - 1 for text in texts],
        list(map(len, texts)),
        [Controls(one, (), text) for one, text in zip(params, texts, strict=True)],
        [1, 2, 3],
        list(map(len, texts)),
        ["d"] * 3,
    )
    draft = Draft.pack(view, [Tree.chain([7]), Tree((), ()), Tree.chain([8, 9])])
    logits = np.random.default_rng(0).normal(0, 3, (len(draft.scored), 30))
    laws, noise = Laws(Scores(logits), draft, view), Noise(view.seeds)
    for node, row in enumerate([0, 0, 1, 2, 2, 2]):
        expected = log_law(logits[node], params[row])
        np.testing.assert_array_equal(laws.log_law(node), expected)
        key = noise.key(row, Lane.TARGET, int(draft.positions[node]) + 1)
        assert laws.draw(node, noise) == int((expected + gumbel(key, 30)).argmax())


def test_a_node_that_was_not_scored_has_no_law() -> None:
    params = SamplingParams()
    view = View([0], [[1, 2, 3]], [0], [3], [Controls(params, (), [1, 2, 3])], [0], [3], ["d"])
    draft = Draft.pack(view, [Tree((), ())])
    with pytest.raises(KeyError):
        Laws(Scores(np.zeros((1, 4))), draft, view).draw(0, Noise([0]))


def test_logits_that_are_not_finite_end_the_answer_there_and_are_noted() -> None:
    view = View([0], [[1, 2]], [0], [2], [Controls(SamplingParams(), [], [1, 2])], [0], [2], ["none"])
    draft = Draft.pack(view, [Tree.chain([3])])
    for bad in ([np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [-np.inf] * 4):
        view.controls[0].failures.clear()
        laws = Laws(Scores(np.array([[0, 1, 2, -np.inf], bad], np.float32)), draft, view)
        assert laws.sound
        laws.draw(1, Noise([0]))
        assert laws.sound, "one token that cannot be is no failure"
        assert view.controls[0].failures == {}
        law = laws.law(2)
        assert not laws.sound
        assert law == pytest.approx([0.25] * 4)
        assert view.controls[0].failures == {
            (3,): ("error", "the target gave logits that are not finite, for the token at position 3")
        }


def test_a_drafter_is_told_that_nothing_is_left_and_that_is_no_failure() -> None:
    logits = np.array([1.0, 2.0, 3.0])
    controls = Controls(SamplingParams(logit_bias={1: -1.0}), [], [])
    assert controls.attempt(logits, 0, ()).tolist() == [1, 1, 3]
    controls = Controls(SamplingParams(logits_processor=lambda tokens, found: 1 / 0), [], [])
    assert controls.attempt(logits, 0, ()).tolist() == [-np.inf] * 3
    assert controls.failures == {}
    assert controls.adjust(logits, 0, ()).tolist() == logits.tolist()
    assert list(controls.failures) == [()]


@pytest.mark.parametrize("adjusts", [(), (0,), (1,), (0, 1)])
def test_tokens_drawn_on_the_device_are_those_drawn_on_the_host(adjusts: tuple[int, ...]) -> None:
    """Of some rows the host adjusts the logits, one reads its prompt, one node has no numbers."""
    rng = np.random.default_rng(5)
    params = [SamplingParams(temperature=0.9, top_p=0.9), SamplingParams(temperature=0), SamplingParams()]
    for row in adjusts:
        params[row] = SamplingParams(temperature=0.8, repetition_penalty=1.3)
    histories = [[1, 2, 3], [4, 5], [6, 7, 8]]
    controls = [Controls(one, [], history) for one, history in zip(params, histories, strict=True)]
    view = View([0, 1, 2], histories, [0, 1, 0], [3, 2, 2], controls, [7, 8, 9], [3, 2, 3], ["none"] * 3,
                wanted={0: range(1, 2)})  # fmt: skip
    draft = Draft.pack(view, [Tree([5, 6, 7], [-1, -1, 0]), Tree.chain([1, 2]), Tree((), ())])
    logits = rng.standard_normal((len(draft.scored), 40)).astype(np.float32)
    logits[2, 4] = np.nan
    noise = Noise(view.seeds)
    there, here = (
        Laws(Scores(values), draft, view) for values in (OnDevice(logits.copy()), logits.astype(np.float64))
    )
    nodes = [node for node in draft.scored.tolist() if node != 1]
    assert [there.draw(node, noise) for node in nodes] == [here.draw(node, noise) for node in nodes]
    assert there.sound == here.sound
