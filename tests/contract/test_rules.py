"""What every rule must hold to; a new file in paceline/rules is found and tested by itself.

That a rule draws from the right law is tested in tests/lossless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from paceline import rules
from paceline.core import Budget, Draft, Drawn, Origin, Promise, Rule, Scores, Tree, Verdict, View
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.laws import Controls, Laws
from paceline.noise import Noise
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from tests.discovery import RULES
from tests.toys import Likeliest, Sampling

V = 12
EXACT = sorted(name for name, rule in RULES.items() if rule.promise is not Promise.LOSSY)
TEXTS = ([1, 2, 3, 4], [5, 6, 7, 8, 9], [2, 2, 3])
READING = 1
"""The row that still reads its prompt."""


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]


def view(seeds: Sequence[int], temperature: float = 1.0, coupled: bool = False) -> View:
    params = [SamplingParams(seed=seed, temperature=temperature) for seed in seeds]
    return View(
        range(len(TEXTS)),
        TEXTS,
        [0] * len(TEXTS),
        [4, 2, 3],
        [Controls(one, (), text) for one, text in zip(params, TEXTS, strict=True)],
        seeds,
        list(map(len, TEXTS)),
        ["d"] * len(TEXTS),
        coupled=coupled,
    )


def kinds(rule: Rule) -> list[Drawn]:
    """The ways of drawing that a drafter can have under this rule."""
    if Drawn.COUPLED in rule.takes:
        return [Drawn.FIXED, Drawn.COUPLED]
    return sorted(rule.takes)


def trees(rule: Rule, how: Drawn, step: View, blur: float = 0.7) -> list[Tree]:
    """Trees that the rule takes, one per row; for the row that reads its prompt, none."""
    widths = (3, 2) if rule.trees else (1, 1, 1)
    table = TableTarget(V).table
    budgets = [Budget(20, 3) if step.draws(row) else Budget(0, 0) for row in range(len(TEXTS))]
    if how is Drawn.FIXED:
        return Likeliest(table, widths, blur).propose(step, budgets)
    drawn = "without_replacement" if how is Drawn.WITHOUT_REPLACEMENT else "iid"
    return Sampling(table, widths, drawn, blur).propose(step, budgets)


def verdict(
    rule: Rule, step: View, proposed: Sequence[Tree], laws: type[Laws] = Laws, dtype: Any = np.float64
) -> tuple[Draft, Verdict]:
    draft = Draft.pack(step, proposed)
    scores = TableTarget(V).forward(draft, frozenset())
    found = laws(Scores(scores.logits.astype(dtype)), draft, step)
    return draft, rule(draft, found, Noise(step.seeds))


def steps(
    rule: Rule, count: int = 25, blur: float = 0.7, **options: Any
) -> Iterator[tuple[View, list[Tree]]]:
    """Steps with many seeds, of all kinds of drafts that the rule takes."""
    for how in kinds(rule):
        for seed in range(count):
            step = view([seed, seed + 100, seed + 200], coupled=Drawn.COUPLED in rule.takes, **options)
            yield step, trees(rule, how, step, blur)


def test_paths_go_down_from_the_root_and_a_token_follows(rule: Rule) -> None:
    lengths = set()
    for step, proposed in steps(rule, blur=4.0):
        draft, found = verdict(rule, step, proposed)
        for row in (0, 2):
            above = draft.roots[row]
            for node in found.paths[row]:
                assert draft.parents[node] == above
                above = node
            assert 0 <= found.next_tokens[row] < V
            lengths.add(len(found.paths[row]))
    assert lengths >= {0, 1, 2}


def test_a_row_that_draws_nothing_keeps_nothing(rule: Rule) -> None:
    for step, proposed in steps(rule, 3):
        _, found = verdict(rule, step, proposed)
        assert (found.paths[READING], found.next_tokens[READING]) == ([], -1)


def test_a_row_without_a_draft_draws_a_token(rule: Rule) -> None:
    nothing = [Tree((), ())] * 3
    step = view([1, 2, 3])
    _, found = verdict(rule, step, nothing)
    assert found.paths == [[], [], []]
    tokens = {verdict(rule, view([seed, 0, 0]), nothing)[1].next_tokens[0] for seed in range(60)}
    assert len(tokens) > 3


def fingerprint(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def test_it_changes_nothing_that_it_is_given_and_says_the_same_again(rule: Rule) -> None:
    for step, proposed in steps(rule, 8):
        draft = Draft.pack(step, proposed)
        scores = TableTarget(V).forward(draft, frozenset())
        laws, noise = Laws(scores, draft, step), Noise(step.seeds)
        seen = [scores.logits, draft.tokens, draft.parents, draft.positions, draft.scored, draft.offsets]
        seen += [origin.law for origin in draft.origins.values()]
        before = fingerprint(*seen), len(draft.origins), [list(text) for text in step.histories]
        first = rule(draft, laws, noise)
        assert rule(draft, laws, noise) == first
        assert (fingerprint(*seen), len(draft.origins), [list(text) for text in step.histories]) == before


def test_a_row_does_not_see_its_neighbours(rule: Rule) -> None:
    for step, proposed in steps(rule, 8):
        draft, found = verdict(rule, step, proposed)
        alone = step.rows([2])
        single, seen = verdict(rule, alone, [proposed[2]])
        moved = [node - draft.offsets[2] for node in found.paths[2]]
        assert ([list(map(int, path)) for path in seen.paths], seen.next_tokens) == (
            [list(map(int, moved))],
            [found.next_tokens[2]],
        )
        assert len(single.tokens) == draft.offsets[3] - draft.offsets[2]


class StrictLaws(Laws):
    """Laws in the array library that allows nothing but the standard."""

    def law(self, node: int) -> Any:
        return strict.asarray(super().law(node))


def test_another_array_library_gives_the_same_verdicts(rule: Rule) -> None:
    for step, proposed in steps(rule, 8):
        expected = verdict(rule, step, proposed)[1]
        assert verdict(rule, step, proposed, StrictLaws)[1] == expected
        origins = [
            {node: Origin(origin.drawn, shared(origin.law)) for node, origin in tree.origins.items()}
            for tree in proposed
            for shared in [Shared()]
        ]
        converted = [tree._replace(origins=o) for tree, o in zip(proposed, origins, strict=True)]
        assert verdict(rule, step, converted, StrictLaws)[1] == expected


class Shared:
    """Converts arrays; siblings that shared one go on sharing."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}

    def __call__(self, law: np.ndarray) -> Any:
        return self.made.setdefault(id(law), strict.asarray(law))


def test_rows_of_single_precision_and_laws_of_single_precision_are_fine(rule: Rule) -> None:
    same = total = 0
    for step, proposed in steps(rule, 15):
        expected = verdict(rule, step, proposed)[1]
        singles: dict[int, np.ndarray] = {}
        rounded = [
            tree._replace(
                origins={
                    node: Origin(o.drawn, singles.setdefault(id(o.law), o.law.astype(np.float32)))
                    for node, o in tree.origins.items()
                }
            )
            for tree in proposed
        ]
        found = verdict(rule, step, rounded, dtype=np.float32)[1]
        assert 0 <= found.next_tokens[0] < V
        same += found == expected
        total += 1
    assert same > 0.9 * total


@pytest.mark.parametrize("name", EXACT)
def test_at_temperature_zero_exact_rules_give_the_tokens_of_match(name: str) -> None:
    accepted = 0
    for step, proposed in steps(RULES[name], temperature=0.0):
        draft, found = verdict(RULES[name], step, proposed)
        for row in (0, 2):
            emitted = [int(draft.tokens[node]) for node in found.paths[row]] + [found.next_tokens[row]]
            text, table = list(TEXTS[row]), TableTarget(V).table
            for token in emitted:
                assert token == table[text[-2], text[-1]].argmax()
                text.append(token)
        wanted = verdict(RULES["match"], step, proposed)[1]
        assert len(wanted.paths[0]) == len(found.paths[0])
        accepted += len(found.paths[0])
    assert accepted > 10


@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
def test_every_number_of_accepted_tokens_happens_where_it_must(rule: Rule, accepted: int) -> None:
    """At temperature 0, a chain that is right so far and wrong from there on."""
    step, table = view([1, 2, 3], temperature=0.0), TableTarget(V).table
    text = list(TEXTS[0])
    for place in range(3):
        best = int(table[text[-2], text[-1]].argmax())
        text.append(best if place < accepted else (best + 1) % V)
    tokens = text[len(TEXTS[0]) :]
    how = kinds(rule)[-1]
    origins = {node: Origin(how, np.full(V, 1 / V)) for node in range(3)} if how is not Drawn.FIXED else {}
    chain = Tree.chain(tokens)._replace(origins=origins)
    draft, found = verdict(rule, step, [chain, Tree((), ()), Tree((), ())])
    assert found.paths[0] == list(range(draft.roots[0] + 1, draft.roots[0] + 1 + accepted))
    after = [*TEXTS[0], *tokens[:accepted]]
    assert found.next_tokens[0] == table[after[-2], after[-1]].argmax()


UNIFORM = np.full(V, 1 / V)


def drafts_of(how: Drawn) -> Tree:
    if how is Drawn.FIXED:
        return Tree.chain([1, 2])
    return Tree.chain([1, 2])._replace(origins={0: Origin(how, UNIFORM), 1: Origin(how, UNIFORM)})


@pytest.mark.parametrize("how", Drawn)
def test_drafts_that_it_does_not_take_are_refused_and_others_are_not(rule: Rule, how: Drawn) -> None:
    proposed = [drafts_of(how), Tree((), ()), Tree((), ())]
    if how in rule.takes:
        verdict(rule, view([1, 2, 3]), proposed)
    else:
        with pytest.raises(IncompatibleDrafter, match=f"rule {rule.name} takes .*; token .* of the draft is"):
            verdict(rule, view([1, 2, 3]), proposed)


def test_a_branch_is_refused_by_rules_for_chains_only(rule: Rule) -> None:
    how = kinds(rule)[-1]
    origins = {} if how is Drawn.FIXED else {node: Origin(how, UNIFORM) for node in range(3)}
    proposed = [Tree([1, 2, 3], [-1, 0, 0], origins), Tree((), ()), Tree((), ())]
    if rule.trees:
        verdict(rule, view([1, 2, 3]), proposed)
    else:
        with pytest.raises(IncompatibleDrafter, match=f"rule {rule.name} takes chains .* starts a branch"):
            verdict(rule, view([1, 2, 3]), proposed)


def test_a_law_that_excludes_its_token_is_a_mistake_in_the_drafter(rule: Rule) -> None:
    if Drawn.IID not in rule.takes or Drawn.COUPLED in rule.takes:
        return  # it never asks what law a token was drawn from
    false = Tree([1], [-1], {0: Origin(Drawn.IID, np.eye(V)[2])})
    with pytest.raises(ValueError, match="holds token 1, which the law it was drawn from excludes"):
        verdict(rule, view([1, 2, 3]), [false, Tree((), ()), Tree((), ())])


def test_it_has_a_line_that_says_what_it_does(rule: Rule) -> None:
    assert rule.__doc__
    assert rule.__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", sorted(RULES))
def test_options_are_read_and_values_out_of_range_refused(name: str) -> None:
    for option, default in rules.options(name).items():
        spec = f"{name}:{option}={default}"
        assert rules.load(spec, allow_lossy=True).settings == {option: default}  # type: ignore[attr-defined]
        for value in ("-1", "1001" if isinstance(default, int) else "nan"):
            with pytest.raises(ConfigError, match=f"{name}:{option} must be from .* to .*, got {value}"):
                rules.load(f"{name}:{option}={value}", allow_lossy=True)


def test_an_option_changes_what_is_accepted() -> None:
    def accepted(spec: str) -> int:
        rule = rules.load(spec, allow_lossy=True)
        return sum(len(path) for s, p in steps(rule) for path in verdict(rule, s, p)[1].paths)

    assert accepted("lenient:lenience=1") < accepted("lenient:lenience=0.3")
    assert accepted("typical:epsilon=0.5,delta=0.5") < accepted("typical:epsilon=0.01")
    assert accepted("top:n=1") < accepted("top:n=4,margin=0.1") < accepted("top:n=4,margin=1")
    assert accepted("lenient:lenience=1") == accepted("rejection")


def test_a_lossy_rule_must_be_allowed() -> None:
    for name in RULES.keys() - set(EXACT):
        with pytest.raises(ConfigError, match=f"rule {name} is lossy.*--allow-lossy.*match"):
            rules.load(name)
