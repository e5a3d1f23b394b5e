"""The drafter eagle3 on a table whose law its drafter knows in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paceline.core import Budget, Origin, Tree, View
from paceline.drafters import load
from paceline.drafters.eagle3 import Eagle3
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter, ModelFileError
from paceline.models.drafter_folder import Eagle3Weights, read_drafter
from paceline.results import Completion
from paceline.rules import load as load_rule
from paceline.sampling import SamplingParams
from paceline.trained.eagle3 import NativeEagle3
from paceline.trained.eagle3_reference import follow, fuse
from tests.eagle3 import additive_drafter, embedding_of, folder_of, run, state_width
from tests.toys import VOCABULARY, SketchingTable


def additive(seed: int = 0) -> tuple[SketchingTable, Eagle3Weights]:
    """A table whose logits are a sum over the last two tokens, and the drafter that knows it."""
    before, last = np.random.default_rng(seed).normal(0, 1, (2, VOCABULARY, VOCABULARY)) * [[[3]], [[1]]]
    target = SketchingTable()
    target.table = before[:, None] + last
    return target, additive_drafter(before, last)


def on_kernels(weights: Eagle3Weights, **sizes: int) -> NativeEagle3:
    nothing = embedding_of(np.zeros((VOCABULARY, state_width(VOCABULARY)), np.float32))
    return run(weights, nothing, 4, **sizes)


def drafter(
    weights: Eagle3Weights, options: str = "widths=1x1x1x1,min_probability=0", **sizes: int
) -> Eagle3:
    made = load(
        f"eagle3:model=here,{options}",
        SketchingTable().info,
        load_drafter=lambda _: on_kernels(weights, **sizes),
    )
    assert isinstance(made, Eagle3)
    return made


def answers(
    target: SketchingTable, eagle3: Eagle3 | None, temperature: float, prompts: int = 12, **options: object
) -> list[Completion]:
    name = "none" if eagle3 is None else "eagle3"
    drafters = {name: eagle3 or load("none", target.info)}
    engine = Engine(target, drafters, drafter=name, **options)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    texts = [rng.integers(VOCABULARY, size=3 + 17 * (i % 3)).tolist() for i in range(prompts)]
    params = [SamplingParams(seed=seed, temperature=temperature, max_tokens=60) for seed in range(prompts)]
    done = engine.generate(texts, params)
    assert engine.load.draft_failures == {}
    return done


def tokens_per_pass(done: Sequence[Completion]) -> float:
    return sum(len(one.token_ids) for one in done) / sum(one.stats.passes for one in done)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 7])
def test_a_drafter_that_knows_the_law_is_nearly_always_right(temperature: float, batch: int) -> None:
    """Its hidden states come from the right positions and its own output goes to the right slots, through
    chunks of prompt, drafts accepted in part, and several requests at once."""
    target, weights = additive()
    done = answers(target, drafter(weights), temperature, max_batch=batch, chunk_tokens=16, nodes=4 * batch)
    plain = answers(target, None, temperature)
    assert [one.token_ids for one in done] == [one.token_ids for one in plain]
    assert tokens_per_pass(done) > 4.2, "of 5 that are possible"


def test_a_drafter_that_sees_the_wrong_positions_is_hardly_ever_right() -> None:
    """The twin: the same drafter, shown each hidden state one position too late."""
    target, weights = additive()

    class Late(SketchingTable):
        def forward(self, draft, taps):  # type: ignore[no-untyped-def]
            scores = super().forward(draft, taps)
            late = {tap: np.roll(states, 1, axis=0) for tap, states in scores.features.items()}
            return type(scores)(scores.logits, late)

    late = Late()
    late.table = target.table
    done = answers(late, drafter(weights), 1.0, max_batch=1)
    assert [one.token_ids for one in done] == [one.token_ids for one in answers(target, None, 1.0)]
    assert tokens_per_pass(done) < 2.5


@pytest.mark.parametrize("rule", ["rejection", "recursive", "traversal", "block"])
def test_it_is_accepted_under_rules_that_compare_laws(rule: str) -> None:
    target, weights = additive()
    for drawn in ("iid", "without_replacement"):
        chosen = load_rule(rule)
        widths = "2x1x1" if chosen.trees else "1x1x1"
        eagle3 = drafter(weights, f"widths={widths},min_probability=0,drawn={drawn}")
        if drawn == "iid" or {*eagle3.drawn} <= chosen.takes:
            assert tokens_per_pass(answers(target, eagle3, 1.0, rule=chosen, nodes=32)) > 2.5


@pytest.mark.parametrize(("temperature", "least"), [(0.0, 3.5), (1.0, 2.5)])
def test_the_likeliest_of_a_few_nodes_of_each_level_are_accepted_too(
    temperature: float, least: float
) -> None:
    target, weights = additive()
    tree = drafter(weights, "widths=3x3x3x3,frontier=2,min_probability=0")
    done = answers(target, tree, temperature, max_batch=3, nodes=24)
    assert [one.token_ids for one in done] == [one.token_ids for one in answers(target, None, temperature)]
    assert tokens_per_pass(done) > least


def test_only_tokens_of_the_reduced_vocabulary_are_proposed() -> None:
    target, weights = additive()
    known = [7, 2, 9, 4, 0]
    head = weights.tensors["lm_head.weight"][known]
    config = replace(weights.config, draft_vocab_size=5)
    reduced = Eagle3Weights(config, {**weights.tensors, "lm_head.weight": head}, np.array(known))
    seen: set[int] = set()
    compared: list[Origin] = []

    class Seen(Eagle3):
        def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
            trees = super().propose(view, budgets)
            for tree in trees:
                seen.update(tree.tokens)
                for origin in tree.origins.values():
                    assert origin.law.sum() == pytest.approx(1)
                    if view.coupled:
                        assert origin.law.shape == (len(known),)
                    else:
                        assert origin.law.shape == (VOCABULARY,)
                        assert set(np.flatnonzero(origin.law)) <= set(known)
                        compared.append(origin)
            return trees

    eagle3 = Seen(on_kernels(reduced), VOCABULARY, [1, 1, 1], next(iter(drafter(weights).drawn)), 0.0)
    done = answers(target, eagle3, 1.0, prompts=6)
    assert [one.token_ids for one in done] == [one.token_ids for one in answers(target, None, 1.0, prompts=6)]
    assert seen == set(known)
    assert tokens_per_pass(done) > 1.5
    answers(target, eagle3, 1.0, prompts=2, rule=load_rule("rejection"))
    assert compared


class Watched(Eagle3):
    """Compares what it would propose with the slow reference, whenever it is asked."""

    def __init__(self, weights: Eagle3Weights, target: SketchingTable) -> None:
        super().__init__(on_kernels(weights), VOCABULARY, [2, 2], next(iter(drafter(weights).drawn)), 0.0)
        self.weights, self.states, self.compared = weights, target._states, 0

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        trees = super().propose(view, budgets)
        embedding = self.weights.tensors["embed_tokens.weight"]
        for row, history in enumerate(view.histories):
            if not trees[row].tokens or len(history) % 4:
                continue
            features = fuse(self.weights, [self.states[history[:-1]]] * 3)
            for path in [(), trees[row].tokens[:1]]:
                wanted = follow(self.weights, embedding, history, features, path)
                found = self._features.score(view.slots, view.histories, [(row, tuple(path))])[0]
                assert np.abs(found - wanted).max() < 0.05 * wanted.std()
                self.compared += 1
        return trees


def test_what_it_says_is_what_the_slow_reference_says_of_the_whole_text() -> None:
    target, weights = additive()
    watched = Watched(weights, target)
    answers(target, watched, 0.7, prompts=3, nodes=18, chunk_tokens=16)
    assert watched.compared > 20


def test_long_prompts_are_read_while_they_come() -> None:
    target, weights = additive()
    eagle3 = drafter(weights)
    engine = Engine(target, {"eagle3": eagle3}, drafter="eagle3", chunk_tokens=100)
    text = np.random.default_rng(2).integers(VOCABULARY, size=450).tolist()
    waiting = []
    for event in engine.stream(text, SamplingParams(temperature=0, max_tokens=40)):
        waiting += [len(one.features) for one in eagle3._features._readings.values()]
        finish = event.finish
    assert finish is not None
    assert tokens_per_pass([finish]) > 4.2
    assert max(waiting) <= 128


def test_a_request_that_lost_its_place_is_drafted_for_again() -> None:
    target, weights = additive()
    engine = Engine(target, {"eagle3": drafter(weights)}, drafter="eagle3")
    params = SamplingParams(temperature=0, max_tokens=60)
    request = engine.submit([1, 2, 3], params)
    finish, steps = None, 0
    while finish is None:
        finish = next((event.finish for event in engine.step() if event.finish), None)
        steps += 1
        if steps == 5:
            engine.preempt(request)
    assert engine.load.preemptions == 1
    assert steps < 20
    plain = Engine(target, {"none": load("none", target.info)}, drafter="none").generate([1, 2, 3], params)
    assert finish.token_ids == plain[0].token_ids


def test_a_drafter_without_room_lets_others_go_on() -> None:
    """A cache for the slots of one text: the others are decoded plainly."""
    target, weights = additive()
    done = answers(target, drafter(weights, cache_tokens=112), 0.0, max_batch=7, nodes=28)
    assert [one.token_ids for one in done] == [one.token_ids for one in answers(target, None, 0.0)]
    assert 1.1 < tokens_per_pass(done) < 4


def test_ended_and_cancelled_requests_leave_nothing_behind() -> None:
    target, weights = additive()
    eagle3 = drafter(weights)
    engine = Engine(target, {"eagle3": eagle3}, drafter="eagle3")
    free = eagle3._features._model._model.free_pages  # type: ignore[attr-defined]
    requests = [engine.submit([1, 2, 3, seed], SamplingParams(max_tokens=30)) for seed in range(4)]
    for _ in range(6):
        engine.step()
    assert eagle3._features._readings
    for request in requests:
        engine.cancel(request)
    assert not eagle3._features._readings
    assert eagle3._features._model._model.free_pages == free  # type: ignore[attr-defined]


def test_it_is_read_from_its_folder(tmp_path: Path) -> None:
    target, weights = additive()
    folder = folder_of(weights, tmp_path / "drafter")
    eagle3 = load(
        f"eagle3:model={folder},min_probability=0",
        target.info,
        load_drafter=lambda path: on_kernels(read_drafter(Path(path))),
    )
    assert eagle3.needs == {"hidden.1", "hidden.2", "hidden.3"}
    assert isinstance(eagle3, Eagle3)
    assert tokens_per_pass(answers(target, eagle3, 0.0, prompts=3, max_batch=1)) > 4


def test_bad_options_are_refused() -> None:
    info = SketchingTable().info
    for spec, message in (
        ("eagle3", "eagle3:model must name a trained drafter's folder"),
        ("eagle3:model=x,widths=0", "eagle3:widths must be numbers from 1 to 64"),
        ("eagle3:model=x,frontier=-1", "eagle3:frontier must be from 0 to 64, got -1"),
        ("eagle3:model=x,min_probability=1", "eagle3:min_probability must be at least 0, below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(spec, info, load_drafter=lambda path: on_kernels(read_drafter(Path(path))))
    with pytest.raises(ModelFileError, match=r"config\.json cannot be read"):
        load("eagle3:model=nowhere", info, load_drafter=lambda path: on_kernels(read_drafter(Path(path))))
    with pytest.raises(IncompatibleDrafter, match="eagle3 needs a load_drafter, and table offers none"):
        load("eagle3:model=x", info)
