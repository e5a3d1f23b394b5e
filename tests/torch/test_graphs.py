"""Passes that are played from recordings: filled up, their arrays copied. Here something else stands for the
device's recorder, which computes them again each time; `tests/gpu` has CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from paceline.core import NOTHING, Draft, Tree, Verdict, View
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.sampling import SamplingParams
from paceline.targets import torch_graphs
from paceline.targets.torch import TorchTarget
from paceline.targets.torch_cache import WASTE
from paceline.targets.torch_graphs import Compute, Result
from tests.torch.families import FAMILIES, model, small
from tests.torch.test_target import words

LENGTHS = (23, 5, 17, 40)
TREES = [Tree(words(5, 1), [-1, 0, 0, 2, -1]), NOTHING, Tree.chain(words(3, 2)), Tree([9, 8], [-1, -1])]
TAPS = frozenset({"hidden.1", "last"})


def again(compute: Compute) -> tuple[Callable[[], None], Result]:
    """Stands for a recorder: the same tensors in, the same tensors out."""
    logits, layers = compute()

    def repeat() -> None:
        new_logits, new_layers = compute()
        logits.copy_(new_logits)
        for tap, values in new_layers.items():
            layers[tap].copy_(values)

    return repeat, (logits, layers)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Recordings that were made."""
    made: list[Any] = []

    def record(compute: Compute) -> Any:
        made.append(compute)
        return again(compute)

    monkeypatch.setattr(torch_graphs, "recorder", lambda device: record)
    return made


def read(target: TorchTarget) -> None:
    """Texts of different lengths, in turns, so that their pages lie between each other's."""
    starts = [0] * len(LENGTHS)
    for _ in range(max(LENGTHS)):
        slots = [slot for slot, length in enumerate(LENGTHS) if starts[slot] < length - 1]
        if not slots:
            return
        texts = [words(LENGTHS[slot], slot) for slot in slots]
        ends = [min(starts[slot] + 9, LENGTHS[slot] - 1) for slot in slots]
        packed = Draft.pack(
            View(slots, texts, [starts[slot] for slot in slots], ends, *([[None] * len(slots)] * 4)),
            [NOTHING] * len(slots),
        )
        target.forward(packed, frozenset())
        target.commit(packed, Verdict([[]] * len(slots), [-1] * len(slots)))
        for slot, end in zip(slots, ends, strict=True):
            starts[slot] = end


def step(*slots: int) -> Draft:
    """The last token of each text, with its tree."""
    texts = [words(LENGTHS[slot], slot) for slot in slots]
    starts, ends = [len(text) - 1 for text in texts], [len(text) for text in texts]
    view = View(slots, texts, starts, ends, *([[None] * len(slots)] * 4))
    return Draft.pack(view, [TREES[slot] for slot in slots])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_played_pass_agrees_with_a_plain_one(family: str, recorded: list[Any]) -> None:
    of = model(family)
    targets = [TorchTarget(of), TorchTarget(of, graphs=True)]
    for target in targets:
        read(target)
    for slots in ((0,), (1,), (0, 1, 2, 3), (3, 2, 0, 1), (2, 0)):
        plain, played = (target.forward(step(*slots), TAPS) for target in targets)
        assert_allclose(played.logits, plain.logits, rtol=1e-3, atol=2e-4)
        for tap in TAPS:
            assert_allclose(played.features[tap], plain.features[tap], rtol=1e-3, atol=2e-4)
    assert recorded


def results(target: TorchTarget, draft: Draft) -> NDArray[Any]:
    scores = target.forward(draft, TAPS)
    return np.concatenate((np.ravel(scores.logits), *(scores.features[tap].ravel() for tap in sorted(TAPS))))


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "llama", "qwen3_moe"])
def test_bits_are_those_of_a_new_recording_whatever_was_played_before(
    family: str, recorded: list[Any]
) -> None:
    target, fresh = (TorchTarget(model(family), graphs=True) for _ in range(2))
    read(target)
    read(fresh)
    results(target, step(3, 2, 0, 1))
    results(target, step(3))
    fresh._graphs._forget()  # type: ignore[union-attr]
    count = len(recorded)
    expected = results(fresh, step(0, 1, 2, 3))
    assert len(recorded) == count + 1
    assert_array_equal(results(target, step(0, 1, 2, 3)), expected)
    assert len(recorded) == count + 1  # which was played, not made


def test_an_input_that_is_not_copied_is_noticed_here(
    recorded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TorchTarget(model("llama"), graphs=True)
    read(target)
    results(target, step(3, 2, 0, 1))

    def stale(recording: Any, layout: Any) -> Result:
        recording._repeat()
        return recording._results  # type: ignore[no-any-return]

    monkeypatch.setattr(torch_graphs._Recording, "play", stale)
    fresh = TorchTarget(model("llama"))
    read(fresh)
    gap = np.abs(results(target, step(0, 1, 2, 3)) - results(fresh, step(0, 1, 2, 3))).max()
    assert gap > 0.1


def test_what_fills_up_is_never_read_and_writes_over_nothing(recorded: list[Any]) -> None:
    target = TorchTarget(model("gemma2"), graphs=True)
    read(target)
    expected = results(target, step(0, 2, 3))
    held = {(slot, layer): target.read_cache(slot, layer) for slot in range(4) for layer in range(3)}
    for keys, values in target._pool._layers.values():
        used = torch.cat([torch.from_numpy(target._pool.places(slot, 48)) for slot in range(4)])
        for store in (keys, values):
            free = torch.ones(len(store), dtype=torch.bool)
            free[used], free[0] = False, False
            assert free[WASTE]
            with torch.inference_mode():
                store[free] = torch.nan
    assert_array_equal(results(target, step(0, 2, 3)), expected)
    for (slot, layer), before in held.items():
        for own, other in zip(before, target.read_cache(slot, layer), strict=True):
            assert_array_equal(own, other)


def test_numbers_that_are_none_stay_in_their_own_sequence() -> None:
    target = TorchTarget(model("llama"))
    read(target)
    expected = results(target, step(1, 3))
    others = torch.from_numpy(np.concatenate([target._pool.places(slot, LENGTHS[slot]) for slot in (0, 2)]))
    for layer in target._pool._layers.values():
        for store in layer:
            with torch.inference_mode():
                store[others] = torch.nan
    assert_array_equal(results(target, step(1, 3)), expected)


def answers(target: TorchTarget, drafter: str) -> list[tuple[int, ...]]:
    engine = Engine(target, {"it": load(drafter, target.info)}, drafter="it", share_prefixes=False)
    params = SamplingParams(temperature=1.1, top_p=0.95, max_tokens=20, seed=5)
    return [done.token_ids for done in engine.generate([words(n, n) * 2 for n in (2, 5, 9)], params)]


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "llama"])
def test_answers_are_those_of_plain_passes(family: str, recorded: list[Any]) -> None:
    expected = answers(TorchTarget(model(family)), "none")
    target = TorchTarget(model(family), graphs=True)
    assert answers(target, "none") == expected
    assert answers(target, "recycling:min_probability=1e-6") == expected
    assert recorded
    assert target.isa.endswith("graphs")


def test_when_the_cache_grows_what_was_recorded_is_given_up(recorded: list[Any]) -> None:
    plain, played = TorchTarget(model("llama")), TorchTarget(model("llama"), graphs=True)
    moves, text = set(), words(100)
    for place in range(99):
        view = View([0], [text], [place], [place + 1], *([[None]] * 4), wanted={0: range(place, place + 1)})
        packed = Draft.pack(view, [NOTHING])
        found = []
        for target in (plain, played):
            found.append(target.forward(packed, frozenset()).logits)
            target.commit(packed, Verdict([[]], [-1]))
        assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-4)
        moves.add(played._pool.moves)
    assert len(moves) > 2


def test_a_model_that_cannot_be_recorded_is_computed_and_the_target_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(compute: Compute) -> Any:
        compute()
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch_graphs, "recorder", lambda device: refuse)
    target = TorchTarget(model("llama"), graphs=True)
    assert "no graphs (RuntimeError: operation not permitted when stream is capturing)" in target.isa
    assert answers(target, "none") == answers(TorchTarget(model("llama")), "none")


@pytest.mark.parametrize("family", FAMILIES)
def test_of_these_models_only_one_asks_the_device_something_in_a_pass(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA graph cannot hold: on PyTorch's fake tensors nothing can be read back either."""

    def record(compute: Compute) -> Any:
        recording = again(compute)
        with FakeTensorMode(allow_non_fake_inputs=True):
            compute()
        return recording

    monkeypatch.setattr(torch_graphs, "recorder", lambda device: record)
    target = TorchTarget(small(family, torch.bfloat16), graphs=True)
    reads = "DataDependentOutputException" in target.isa
    assert reads == (family == "llama4_text")
    assert target.isa.endswith("graphs") or reads


def test_passes_of_many_rows_are_not_recorded(recorded: list[Any]) -> None:
    target = TorchTarget(model("llama"), graphs=True)
    count = len(recorded)
    packed = Draft.pack(View([0], [words(65)], [0], [65], *([[None]] * 4)), [NOTHING])
    target.forward(packed, frozenset())
    assert len(recorded) == count


def test_so_many_recordings_are_kept_at_most(recorded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graphs, "MOST_RECORDINGS", 2)
    target = TorchTarget(model("llama"), graphs=True)
    read(target)
    count = len(recorded)
    for slots in ((0,), (1,), (2, 3), (2, 3), (1,), (0,)):
        target.forward(step(*slots), frozenset())
    assert len(target._graphs._recordings) == 2  # type: ignore[union-attr]
    assert len(recorded) == count + 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"graphs": True}, "graphs=True needs a CUDA device"),
        ({"graphs": True, "rows": 8}, "do not go together"),
    ],
)
def test_graphs_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TorchTarget(model("llama"), **options)


def test_shapes_are_few_and_hold_what_they_must() -> None:
    sizes = [torch_graphs.step(count) for count in range(1, 65)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(size >= count for count, size in enumerate(sizes, 1))
    assert [torch_graphs.step(count, 128) for count in (1, 128, 129, 193, 300)] == [128, 128, 192, 256, 384]
