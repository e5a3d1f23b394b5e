"""What every drafter must hold to; a new file in paceline/drafters is found and tested by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from paceline.core import NOTHING, Budget, Drafter, Step, Tree, View
from paceline.drafters import names, options
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.laws import Controls
from paceline.sampling import SamplingParams
from tests.discovery import drafter as drafter_for
from tests.toys import Detached, SketchingTable

INFO = Detached().info


def make(spec: str) -> Drafter:
    """A drafter that is asked by hand, without an engine."""
    return drafter_for(spec, Detached())


SPECS = [*names(), "draft:model=near,min_probability=0,ahead=2", "exit:model=near,min_probability=0"]


@pytest.fixture(params=SPECS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def repetitive(seed: int, length: int) -> list[int]:
    """A text in which phrases come back, so that drafters find something."""
    rng = random.Random(seed)
    phrases = [[rng.randrange(INFO.vocab_size) for _ in range(rng.randint(2, 6))] for _ in range(4)]
    text: list[int] = []
    while len(text) < length:
        text += rng.choice(phrases)
    return text[:length]


def view(texts: dict[int, list[int]], name: str, prompt: int = 4) -> View:
    params = SamplingParams(temperature=0)
    rows = list(texts.values())
    return View(
        list(texts),
        rows,
        [len(text) - 1 for text in rows],
        [len(text) for text in rows],
        [Controls(params, (), text) for text in rows],
        list(texts),
        [min(prompt, len(text)) for text in rows],
        [name] * len(rows),
        {slot: repetitive(slot, 40) for slot in texts},
    )


def depth(tree: Tree) -> int:
    depths: list[int] = []
    for parent in tree.parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 1)
    return max(depths, default=0)


def generate(name: str, seeds: range, **engine_options: int) -> list[tuple[int, ...]]:
    target = SketchingTable()
    engine = Engine(target, {"d": drafter_for(name, target)}, drafter="d", **engine_options)
    prompts = [repetitive(seed, 3 + seed % 20) for seed in seeds]
    params = [SamplingParams(seed=seed, temperature=0.4, max_tokens=20) for seed in seeds]
    done = engine.generate(prompts, params, "d", prediction=[repetitive(seed, 40) for seed in seeds])
    assert engine.load.draft_failures == {}
    return [completion.token_ids for completion in done]


@pytest.mark.parametrize("kind", names())
def test_every_option_has_a_default_of_a_kind_that_can_be_typed(kind: str) -> None:
    assert all(isinstance(default, int | float | bool | str) for default in options(kind).values())


@pytest.mark.parametrize("kind", names())
def test_an_unknown_option_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind} has no option 'colour'"):
        make(f"{kind}:colour=red")


def test_it_needs_no_more_than_a_set_of_taps(name: str) -> None:
    assert isinstance(make(name).needs, frozenset)
    assert not make(name).whole or make(name).needs


@pytest.mark.parametrize("budget", [Budget(0, 0), Budget(0, 5), Budget(5, 0), Budget(1, 1), Budget(9, 2)])
def test_it_stays_within_its_budget_and_proposes_trees_of_real_tokens(name: str, budget: Budget) -> None:
    drafter = make(name)
    for length in range(1, 80):
        text = repetitive(length, length)
        tree = drafter.propose(view({length: text}, name), [budget])[0]
        assert len(tree.tokens) == len(tree.parents) <= budget.nodes
        assert depth(tree) <= budget.depth
        assert all(-1 <= parent < node for node, parent in enumerate(tree.parents))
        assert all(0 <= token < INFO.vocab_size for token in tree.tokens)
        assert len(tree.confidences) in (0, len(tree.tokens))
        assert all(0 <= confidence <= 1 for confidence in tree.confidences)


def test_it_leaves_the_history_alone(name: str) -> None:
    drafter, text = make(name), repetitive(1, 60)
    drafter.propose(view({0: text}, name), [Budget(8, 8)])
    assert text == repetitive(1, 60)


def test_proposing_again_gives_the_same_tree(name: str) -> None:
    drafter, text = make(name), repetitive(2, 60)
    trees = [drafter.propose(view({0: text}, name), [Budget(8, 8)])[0] for _ in range(2)]
    assert list(trees[0].tokens) == list(trees[1].tokens)


def test_a_row_without_budget_does_not_change_its_neighbour(name: str) -> None:
    text, other = repetitive(3, 60), repetitive(4, 50)
    alone = make(name).propose(view({0: text}, name), [Budget(8, 8)])[0]
    beside = make(name).propose(view({0: text, 1: other}, name), [Budget(8, 8), Budget(0, 0)])[0]
    assert list(alone.tokens) == list(beside.tokens)
    assert list(alone.parents) == list(beside.parents)


def test_answers_equal_plain_decoding(name: str) -> None:
    plain = generate("none", range(60), max_batch=1)
    assert generate(name, range(60), max_batch=1) == plain
    assert generate(name, range(60), max_batch=7, chunk_tokens=5, nodes=21) == plain


class OnAndOff:
    """A drafter that is left alone in some steps, as one is that failed, and in those that read prompts, as
    where a prompt's pages were found."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._random = random.Random(1)
        self._on = True
        self.needs, self.drawn, self.branches = drafter.needs, drafter.drawn, drafter.branches
        self.whole = drafter.whole

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        self._on = self._random.random() < 0.6 and all(view.draws(row) for row in range(len(budgets)))
        return self._drafter.propose(view, budgets) if self._on else [NOTHING] * len(budgets)

    def observe(self, step: Step) -> None:
        if self._on:
            self._drafter.observe(step)

    def release(self, slots: Sequence[int]) -> None:
        self._drafter.release(slots)


def test_it_may_miss_steps_and_the_beginnings_of_prompts(name: str) -> None:
    target = SketchingTable()
    engine = Engine(target, {"d": OnAndOff(drafter_for(name, target))}, drafter="d", chunk_tokens=9)
    prompts = [repetitive(seed % 7, 3 + seed % 40) for seed in range(60)]
    params = [SamplingParams(seed=seed, temperature=0.4, max_tokens=20) for seed in range(60)]
    done = engine.generate(prompts, params, "d", prediction=[repetitive(seed, 40) for seed in range(60)])
    assert engine.load.draft_failures == {}
    assert engine.load.prefix_hit_tokens > 0 or make(name).whole, "who needs all features reads whole prompts"
    plain = Engine(target, {"none": drafter_for("none", target)}, drafter="none").generate(prompts, params)
    assert [c.token_ids for c in done] == [c.token_ids for c in plain]


def test_releasing_a_slot_that_it_never_saw_is_no_error(name: str) -> None:
    make(name).release([5, 6])


def test_a_reused_slot_brings_nothing_over_but_what_was_learned_on_purpose(name: str) -> None:
    if "store_tokens" in options(name.partition(":")[0]):
        used, fresh = (make(f"{name}:store_tokens=0") for _ in range(2))
    else:
        used, fresh = make(name), make(name)
    used.propose(view({0: repetitive(5, 90)}, name), [Budget(8, 8)])
    used.release([0])
    for length in range(1, 60):
        now = view({0: repetitive(6, length)}, name)
        (left,), (right,) = used.propose(now, [Budget(8, 8)]), fresh.propose(now, [Budget(8, 8)])
        assert left[:2] == right[:2]
