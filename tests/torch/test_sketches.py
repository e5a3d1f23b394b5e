"""Drafting with the model's own weights on PyTorch: passes that leave out layers or most of the cache, and
embeddings that stand in the places of tokens. Held to what transformers makes of the same model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from paceline import policies
from paceline.core import LAST, NOTHING, Draft, Shortcut, Tree, Verdict
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.pretrained import offers
from paceline.sampling import SamplingParams
from paceline.targets.torch import TorchTarget
from paceline.trained.pads import NativePads
from tests import exits, pads
from tests.torch.families import FAMILIES, VOCABULARY, model, small
from tests.torch.test_encoder_decoder import translator
from tests.torch.test_graphs import recorded  # noqa: F401
from tests.torch.test_target import ROWS, draft, words
from tests.torch.test_vision import seeing

NONE: frozenset[str] = frozenset()
TREE = Tree([9, 8, 7, 6], [-1, 0, 0, -1])
PADS = replace(pads.CONFIG, vocab_size=VOCABULARY, hidden=32, draft_vocab_size=VOCABULARY)
EXITS = replace(exits.CONFIG, vocab_size=VOCABULARY, hidden=32)
SHORTCUTS = {
    "nothing": Shortcut(),
    "a layer": Shortcut(frozenset({1})),
    "the last layers": Shortcut(frozenset({1, 2})),
    "the middle of the cache": Shortcut(sinks=5, recent=9),
    "both": Shortcut(frozenset({0}), sinks=3, recent=1),
}


def paths(packed: Draft, text: list[int]) -> Iterator[list[int]]:
    """All tokens up to each scored node."""
    for node in packed.scored.tolist():
        above: list[int] = []
        while node > packed.roots[0]:
            above.append(int(packed.tokens[node]))
            node = int(packed.parents[node])
        yield [*text, *above[::-1]]


def read(target: TorchTarget, text: list[int], tree: Tree = TREE, slot: int = 0) -> Draft:
    """All but the last token in the cache; the draft of the next pass."""
    if len(text) > 1:
        first = draft(text[:-1], 0)
        first = replace(first, slots=np.array([slot], np.int32))
        target.forward(first, NONE)
        target.commit(first, Verdict([[]], [-1]))
    return replace(draft(text, len(text) - 1, tree), slots=np.array([slot], np.int32))


@contextmanager
def without(of: Any, skipped: frozenset[int]) -> Iterator[None]:
    """The model without these layers, by hand."""
    lists = [
        part
        for part in of.modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == of.config.num_hidden_layers
    ]
    own = list(lists[0])
    try:
        for index in skipped:
            lists[0][index] = Nothing(own[index])
        yield
    finally:
        for index in skipped:
            lists[0][index] = own[index]


class Nothing(torch.nn.Module):
    """Stands for a layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        for name in ("attention_type", "layer_type"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, states: Any, *_: Any, **__: Any) -> Any:
        return states


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sketch_without_layers_is_the_pass_of_a_model_without_them(family: str) -> None:
    of, text = model(family), words(11)
    target = TorchTarget(of)
    assert target.info.layers == 3
    fresh, cached = draft(text, 0, TREE), read(target, text, slot=1)  # caches are of all layers
    for packed, skipped in ((fresh, {1}), (fresh, {0}), (fresh, {1, 2}), (cached, {2}), (cached, {1, 2})):
        whole = target.forward(packed, NONE).logits.copy()
        logits = np.array(target.sketch(packed, Shortcut(frozenset(skipped))))
        with torch.no_grad(), without(of, frozenset(skipped)):
            for place, path in enumerate(paths(packed, text)):
                own = of(input_ids=torch.tensor([path]), use_cache=False).logits[0, -1]
                assert_allclose(logits[place], own, rtol=1e-3, atol=2e-4)
        assert not np.allclose(logits, whole, rtol=1e-2, atol=1e-2), "the twin: a layer counts"


@pytest.mark.parametrize("rows", [None, ROWS])
def test_what_is_not_seen_makes_no_difference(rows: int | None) -> None:
    """Tokens between the first and the last ones may be any, with one layer left, which mixes places once."""
    target = TorchTarget(model("llama"), rows=rows)
    text = words(60)
    other, recent = [*text[:7], *words(32, 9), *text[39:]], [*text[:7], *words(53, 9)]
    found = []
    for slot, history in enumerate((text, other, recent)):
        packed = read(target, history, slot=slot)
        found.append(np.array(target.sketch(packed, Shortcut(frozenset({1, 2}), sinks=7, recent=20))))
    assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0][:1], found[2][:1]), "the twin: what is seen counts"


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama", "qwen3_moe"])
@pytest.mark.parametrize("what", SHORTCUTS)
def test_sketches_leave_later_passes_and_the_cache_as_they_were(what: str, family: str) -> None:
    sketched, untouched = (TorchTarget(model(family), rows=ROWS) for _ in range(2))
    text = words(30)
    found = []
    for target in (sketched, untouched):
        packed = read(target, text)
        if target is sketched:
            whole = target.forward(packed, NONE).logits.copy()
            same = np.array_equal(whole, target.sketch(packed, SHORTCUTS[what]))
            assert same == (what == "nothing")
        scores = target.forward(packed, frozenset({"hidden.2"}))
        target.commit(packed, Verdict([[1, 2]], [5]))
        after = draft([*text, 9, 8, 5], 32, Tree.chain([1]))
        if target is sketched:
            target.sketch(after, SHORTCUTS[what])
        found.append((scores.logits, scores.features["hidden.2"], target.forward(after, NONE).logits))
    for ours, theirs in zip(*found, strict=True):
        assert_array_equal(ours, theirs)
    for layer in range(3):
        for ours, theirs in zip(sketched.read_cache(0, layer), untouched.read_cache(0, layer), strict=True):
            assert_array_equal(ours, theirs)


def test_layers_that_others_have_wrapped_are_left_as_they_were() -> None:
    of = small("llama")
    target, layer = TorchTarget(of), of.model.layers[1]
    own, calls = layer.forward, []
    layer.forward = lambda *args, **how: calls.append(1) or own(*args, **how)
    wrapped = layer.forward
    packed = read(target, words(9))
    calls.clear()
    target.sketch(packed, SHORTCUTS["a layer"])
    assert not calls
    assert layer.forward is wrapped
    target.forward(packed, NONE)
    assert calls


def test_a_model_whose_layers_need_each_other_says_so_and_offers_none() -> None:
    of = small("llama")
    first, second = of.model.layers[:2]
    own = {layer: layer.forward for layer in (first, second)}
    made: list[Any] = []

    def give(*args: Any, **how: Any) -> Any:
        made.append(1)
        return own[first](*args, **how)

    def take(*args: Any, **how: Any) -> Any:
        made.pop()
        return own[second](*args, **how)

    first.forward, second.forward = give, take
    target = TorchTarget(of)
    assert target.info.layers == 0
    assert "no sketches (IndexError: pop from empty list)" in target.isa
    with pytest.raises(IncompatibleDrafter, match="exit needs a sketch"):
        load("exit", target.info, **offers(target, None))


def test_a_readout_gets_the_states_behind_the_last_layer_that_is_run() -> None:
    of, text = model("qwen3"), words(11)
    target, seen = TorchTarget(of), []

    def readout(states: Any) -> Any:
        seen.append(states)
        return states[:, :5]

    packed = read(target, text)
    for skipped, behind in ((frozenset({2}), 2), (frozenset({1, 2}), 1)):
        logits = target.sketch(packed, Shortcut(skipped, readout=readout))
        assert_array_equal(logits, seen[-1][:, :5])
        for place, path in enumerate(paths(packed, text)):
            with torch.no_grad():
                own = of(input_ids=torch.tensor([path]), use_cache=False, output_hidden_states=True)
            assert_allclose(seen[-1][place], own.hidden_states[behind][0, -1], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="leaves out the last layer"):
        target.sketch(packed, Shortcut(frozenset({1}), readout=readout))


def run_pads(target: TorchTarget, weights: Any) -> NativePads:
    return NativePads(weights, target.head(), target.look_ahead)


def pads_of(seed: int = 0, depths: int = 3) -> Any:
    return pads.random_pads(replace(PADS, depths=depths), seed)


@pytest.mark.parametrize("rows", [None, ROWS])
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama", "qwen3"])
def test_what_pads_show_is_what_the_model_makes_of_their_embeddings(family: str, rows: int | None) -> None:
    of, text, weights = model(family), words(20), pads_of()
    target = TorchTarget(of, rows=rows)
    tap = target.look_ahead(weights.embeddings)
    packed = read(target, text)
    plain = target.forward(packed, frozenset({LAST}))
    logits, last = plain.logits.copy(), plain.features[LAST].copy()
    scores = target.forward(packed, frozenset({tap, LAST}))
    exactly = assert_array_equal if rows else assert_allclose
    exactly(scores.logits, logits, **({} if rows else {"rtol": 1e-3, "atol": 1e-4}))
    exactly(scores.features[LAST], last, **({} if rows else {"rtol": 1e-3, "atol": 1e-4}))
    embed = of.get_input_embeddings()
    for place, path in enumerate(paths(packed, text)):
        with torch.no_grad():
            known = embed(torch.tensor([path]))
            given = torch.cat((known, torch.from_numpy(weights.embeddings)[None]), 1)
            own = of(inputs_embeds=given, use_cache=False, output_hidden_states=True).hidden_states[-1]
        found = scores.features[tap][packed.scored[place]]
        assert_allclose(found, own[0, -3:], rtol=1e-3, atol=2e-4)
        assert not np.allclose(found, own[0, -4:-1], rtol=1e-2, atol=1e-2), "the twin: a place further"


def test_pads_leave_no_page_behind_and_without_room_there_are_none() -> None:
    roomy, small_ = TorchTarget(model("llama")), TorchTarget(model("llama"), cache_tokens=32)
    text = words(28)
    for target, there in ((roomy, True), (small_, False)):
        tap = target.look_ahead(pads_of().embeddings)
        packed = read(target, text, Tree.chain([1, 2]))
        scores = target.forward(packed, frozenset({tap, LAST}))
        assert bool(np.isfinite(scores.features[tap]).all()) == there
        assert np.isfinite(scores.features[LAST]).all()
        target.commit(packed, Verdict([[1]], [5]))
        assert len(target._pool.books.of(0)) == 2
    ending = words(127)
    packed = read(roomy, ending, NOTHING, slot=3)
    scores = roomy.forward(packed, frozenset({"ahead.0"}))
    assert np.isnan(scores.features["ahead.0"]).all(), "there are no positions behind the last"


def test_other_embeddings_have_another_tap_and_wrong_ones_are_refused() -> None:
    target = TorchTarget(model("llama"))
    first, again, other = (target.look_ahead(pads_of(seed).embeddings) for seed in (0, 0, 1))
    assert first == again != other
    assert {first, other} <= target.info.taps
    for shape in ((0, 32), (17, 32), (3, 64)):
        with pytest.raises(ConfigError, match=r"looks ahead with 1 to 16 embeddings 32 wide, got \["):
            target.look_ahead(np.zeros(shape, np.float32))
    both = target.forward(read(target, words(9)), frozenset({first, other})).features
    target.release([0])
    assert_allclose(
        target.forward(read(target, words(9)), frozenset({other})).features[other][0],
        both[other][0],
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("make", [lambda: translator("t5"), lambda: seeing("smolvlm")])
def test_a_model_that_reads_more_than_text_takes_no_embeddings(make: Any) -> None:
    target = TorchTarget(make())
    assert target.info.layers == 0
    with pytest.raises(IncompatibleDrafter, match="reads more than text, and no pads"):
        target.look_ahead(pads_of().embeddings)


SELF_DRAFTERS = (
    "skip:share=0.3,min_probability=1e-6",
    "exit:layers=2,min_probability=1e-6",
    "sparse:sinks=2,recent=4,min_probability=1e-6",
    "exit:model=EXITS,min_probability=1e-6",
    "pads:model=PADS,min_probability=1e-6",
)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("drafter", SELF_DRAFTERS)
def test_answers_are_plain_decodings(drafter: str, graphs: bool, tmp_path: Any, recorded: Any) -> None:  # noqa: F811
    """Rejections too; `recorded` stands for a device's graphs, which do without `rows`."""
    drafter = drafter.replace("PADS", str(pads.folder_of(pads_of(), tmp_path / "pads")))
    drafter = drafter.replace("EXITS", str(exits.folder_of(exits.random_exits(EXITS), tmp_path / "exits")))
    target = TorchTarget(model("llama"), **({"graphs": True} if graphs else {"rows": ROWS}))
    prompts, done = [words(length, length) * 2 for length in (2, 5, 9)], {}
    params = SamplingParams(temperature=1.1, max_tokens=20, seed=5)
    for spec in ("none", drafter):
        engine = Engine(
            target, {spec: load(spec, target.info, **offers(target, None))}, drafter=spec,
            policy=policies.load("fixed"),
            max_batch=3,
        )  # fmt: skip
        done[spec] = engine.generate(prompts, params)
    assert [one.token_ids for one in done[drafter]] == [one.token_ids for one in done["none"]]
    stats = [one.stats for one in done[drafter]]
    drafted, accepted = (sum(getattr(one, name) for one in stats) for name in ("drafted", "accepted"))
    assert drafted > accepted
    assert accepted > 0 or "=EXITS" in drafter or "PADS" in drafter, "random weights are seldom right"
    if graphs:
        assert recorded


def test_a_sketch_that_sees_all_drafts_what_the_model_says() -> None:
    target = TorchTarget(model("llama"), rows=ROWS)
    drafter = load("sparse:min_probability=0", target.info, **offers(target, None))
    engine = Engine(target, {"sparse": drafter}, drafter="sparse", policy=policies.load("fixed"))
    (done,) = engine.generate([words(9)], SamplingParams(max_tokens=20))
    assert done.stats.drafted == done.stats.accepted > 10
