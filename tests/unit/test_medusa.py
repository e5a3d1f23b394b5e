"""The drafter medusa on a table whose law its heads know in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paceline.core import LAST, Budget, Draft, Drafter, Scores, Tree, View
from paceline.drafters import load
from paceline.drafters.medusa import Medusa
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter, ModelFileError
from paceline.models.heads_folder import HeadsWeights, read_heads
from paceline.results import Completion
from paceline.rules import load as load_rule
from paceline.sampling import SamplingParams
from tests.heads import chain_heads, folder_of, run
from tests.toys import VOCABULARY, SketchingTable

CHAIN = "widths=1x1x1x1,min_probability=0"
TREE = "widths=4x4x3x3,min_probability=0"


def chain(sharpness: float, blur: float = 0) -> tuple[SketchingTable, HeadsWeights]:
    """A table that goes from token to token around one cycle, more or less surely, and heads that know it, or
    something like it."""
    rng = np.random.default_rng(0)
    order = rng.permutation(VOCABULARY)
    logits = rng.normal(0, 0.5, (VOCABULARY, VOCABULARY))
    logits[order, np.roll(order, 1)] += sharpness
    target = SketchingTable()
    target.table = np.repeat(logits[None], VOCABULARY, 0)
    law = np.exp(logits + rng.normal(0, blur, logits.shape))
    return target, chain_heads(law / law.sum(1, keepdims=True))


def drafter(weights: HeadsWeights, options: str = CHAIN) -> Medusa:
    made = load(
        f"medusa:model=here,{options}", SketchingTable().info, load_heads=lambda kind, _: run(weights)
    )
    assert isinstance(made, Medusa)
    return made


def answers(
    target: SketchingTable,
    medusa: Drafter | None,
    temperature: float,
    prompts: int = 12,
    params: dict[str, object] | None = None,
    **options: object,
) -> list[Completion]:
    name = "none" if medusa is None else "medusa"
    engine = Engine(target, {name: medusa or load("none", target.info)}, drafter=name, **options)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    texts = [rng.integers(VOCABULARY, size=3 + 17 * (i % 3)).tolist() for i in range(prompts)]
    asked = [
        SamplingParams(seed=seed, temperature=temperature, max_tokens=60, **(params or {}))  # type: ignore[arg-type]
        for seed in range(prompts)
    ]
    done = engine.generate(texts, asked)
    assert engine.load.draft_failures == {}
    return done


def tokens_per_pass(done: Sequence[Completion]) -> float:
    return sum(len(one.token_ids) for one in done) / sum(one.stats.passes for one in done)


def same(left: Sequence[Completion], right: Sequence[Completion]) -> bool:
    return [one.token_ids for one in left] == [one.token_ids for one in right]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 7])
def test_heads_that_know_the_law_are_nearly_always_right(temperature: float, batch: int) -> None:
    """Their states come from the right positions, through chunks of prompt, drafts accepted in part, and
    several requests at once."""
    target, weights = chain(8)
    done = answers(target, drafter(weights), temperature, max_batch=batch, chunk_tokens=16, nodes=4 * batch)
    assert same(done, answers(target, None, temperature))
    assert tokens_per_pass(done) > 4.3, "of 5 that are possible"


def test_heads_that_see_the_wrong_positions_are_hardly_ever_right() -> None:
    """The twin: the same heads, shown each state one position too late."""
    target, weights = chain(8)

    class Late(SketchingTable):
        def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
            scores = super().forward(draft, taps)
            if LAST not in taps:
                return scores
            late = np.roll(scores.features[LAST], 1, axis=0)
            return replace(scores, features={LAST: late})

    late = Late()
    late.table = target.table
    done = answers(late, drafter(weights), 1.0, max_batch=1)
    assert same(done, answers(target, None, 1.0))
    assert tokens_per_pass(done) < 1.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_tree_of_the_likeliest_paths_brings_more_than_a_chain(temperature: float) -> None:
    target, weights = chain(3, blur=0 if temperature else 2)
    chained, tree = (
        answers(target, drafter(weights, options), temperature, max_batch=3, nodes=36)
        for options in (CHAIN, TREE)
    )
    assert same(chained, tree)
    assert same(tree, answers(target, None, temperature))
    assert tokens_per_pass(tree) > tokens_per_pass(chained) + 0.3


@pytest.mark.parametrize("rule", ["rejection", "recursive", "traversal", "block"])
def test_they_are_accepted_under_rules_that_compare_laws(rule: str) -> None:
    target, weights = chain(8)
    for drawn in ("iid", "without_replacement"):
        chosen = load_rule(rule)
        widths = "2x1x1" if chosen.trees else "1x1x1"
        medusa = drafter(weights, f"widths={widths},min_probability=0,drawn={drawn}")
        if drawn == "iid" or {*medusa.drawn} <= chosen.takes:
            assert tokens_per_pass(answers(target, medusa, 1.0, rule=chosen, nodes=32)) > 2.5


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_controls_that_look_at_the_path_are_heeded_along_it(temperature: float) -> None:
    """Repetition makes tokens of the cycle unlikely, so that heads alone would be wrong."""
    target, weights = chain(3)
    more = {"presence_penalty": 2.0, "frequency_penalty": 0.4}
    done = answers(target, drafter(weights, TREE), temperature, params=more, nodes=64)
    assert same(done, answers(target, None, temperature, params=more))
    assert tokens_per_pass(done) > 1.3


def test_only_tokens_of_the_reduced_vocabulary_are_proposed() -> None:
    target, weights = chain(2)
    known = np.array([0, 2, 4, 7, 9])
    config = replace(weights.config, draft_vocab_size=5)
    heads = {
        name: tensor[known] if name.startswith("lm_heads") else tensor
        for name, tensor in weights.tensors.items()
    }
    seen: set[int] = set()

    class Seen(Medusa):
        def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
            trees = super().propose(view, budgets)
            for tree in trees:
                seen.update(tree.tokens)
            return trees

    kinds = drafter(weights).drawn
    medusa = Seen(run(HeadsWeights(config, heads, known)), VOCABULARY, [3, 2, 2], next(iter(kinds)), 0.0)
    done = answers(target, medusa, 1.0, nodes=64)
    assert same(done, answers(target, None, 1.0))
    assert seen == set(known.tolist())
    assert tokens_per_pass(done) > 1.2


def test_what_is_likely_is_learned_while_drafting() -> None:
    """Heads that are sure and always wrong are soon asked for nothing."""
    target, weights = chain(8)
    wrong = {name: np.roll(tensor, 1, axis=0) for name, tensor in weights.tensors.items()}
    medusa = drafter(replace(weights, tensors=wrong), "widths=1x1,min_probability=0.2")
    first = answers(target, medusa, 0.0, prompts=6)
    assert sum(one.stats.drafted for one in first) > 0
    again = answers(target, medusa, 0.0, prompts=6)
    assert sum(one.stats.drafted for one in again) == 0
    assert same(first, again)


def test_fewer_heads_than_levels_make_shorter_drafts() -> None:
    target, weights = chain(8)
    config = replace(weights.config, depths=2)
    tensors = {name: weights.tensors[name] for name in config.shapes}
    done = answers(target, drafter(replace(weights, config=config, tensors=tensors)), 0.0)
    assert 2.7 < tokens_per_pass(done) <= 3


def test_a_request_that_lost_its_place_is_drafted_for_again() -> None:
    target, weights = chain(8)
    engine = Engine(target, {"medusa": drafter(weights)}, drafter="medusa")
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


def test_ended_and_cancelled_requests_leave_nothing_behind() -> None:
    target, weights = chain(8)
    medusa = drafter(weights)
    engine = Engine(target, {"medusa": medusa}, drafter="medusa")
    requests = [engine.submit([1, 2, 3, seed], SamplingParams(max_tokens=30)) for seed in range(4)]
    for _ in range(3):
        engine.step()
    assert medusa._levels._states
    for request in requests:
        engine.cancel(request)
    assert not medusa._levels._states
    assert not medusa._levels._levels
    assert not medusa._proposed


def test_they_are_read_from_their_folder(tmp_path: Path) -> None:
    target, weights = chain(8)
    folder = folder_of(weights, tmp_path / "heads")
    medusa = load(
        f"medusa:model={folder},min_probability=0",
        target.info,
        load_heads=lambda kind, path: run(read_heads(Path(path), kind)),
    )
    assert medusa.needs == {LAST}
    assert isinstance(medusa, Medusa)
    assert tokens_per_pass(answers(target, medusa, 0.0, prompts=3, max_batch=1)) > 4.3


def test_bad_options_are_refused() -> None:
    info = SketchingTable().info
    for spec, message in (
        ("medusa", "medusa:model must name the folder of trained heads"),
        ("medusa:model=x,widths=0", "medusa:widths must be numbers from 1 to 64"),
        ("medusa:model=x,min_probability=1", "medusa:min_probability must be at least 0, below 1"),
        ("medusa:model=x,drawn=twice", "medusa:drawn must be iid or without_replacement"),
        ("medusa:model=x,frontier=2", "medusa has no option 'frontier'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(spec, info, load_heads=lambda kind, path: run(read_heads(Path(path), kind)))
    with pytest.raises(ModelFileError, match=r"config\.json cannot be read"):
        load("medusa:model=nowhere", info, load_heads=lambda kind, path: run(read_heads(Path(path), kind)))
    with pytest.raises(IncompatibleDrafter, match="medusa needs a load_heads, and table offers none"):
        load("medusa:model=x", info)
