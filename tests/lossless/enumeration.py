"""Every outcome of a rule with its probability: the rule's own code, run once for each way chance can go.

`branches` runs a function that asks a `Chance` for every decision, again and again, until each combination
of answers was given. Drafts are made so, by the test's plan or by `paceline.drafting.grow` itself; and so
are the coins and draws of the rule, whose noise and laws are stood in for. What a rule emits is extended by
the target to full length and compared with the target's own joint law.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from paceline import drafting
from paceline.core import Budget, Draft, Drawn, Origin, Rule, Tree, View

Law = NDArray[np.float64]
Path = tuple[int, ...]
Laws = Mapping[Path, Law]
"""{tokens so far: law of the next one}."""
T = TypeVar("T")

AS_DRAWN = -7
"""Stands for the token that a rule draws at its end: its law is recorded instead of branching over it."""


class Chance:
    """Answers decisions: those of `given` first, then always the first possible outcome."""

    def __init__(self, given: Sequence[int]) -> None:
        self.given = given
        self.answers: list[int] = []
        self.open: list[list[int]] = []
        self.probability = 1.0

    def decide(self, probabilities: Sequence[float]) -> int:
        """One of the outcomes, each with a probability in proportion."""
        place = len(self.answers)
        possible = [outcome for outcome, p in enumerate(probabilities) if p > 0]
        answer = self.given[place] if place < len(self.given) else possible[0]
        if place >= len(self.given):
            self.open += [[*self.answers, other] for other in possible[1:]]
        self.answers.append(answer)
        self.probability *= float(probabilities[answer]) / float(sum(probabilities))
        return answer


def branches(run: Callable[[Chance], T]) -> Iterator[tuple[float, T]]:
    """(probability, result) of every way that `run` can go."""
    waiting: list[list[int]] = [[]]
    while waiting:
        chance = Chance(waiting.pop())
        result = run(chance)
        waiting += chance.open
        yield chance.probability, result


class NoiseByChance:
    """Stands in for `paceline.noise.Noise`."""

    def __init__(self, chance: Chance) -> None:
        self.chance = chance
        self.last: Law | None = None
        self.coins: dict[tuple[int, int, int], tuple[float, float]] = {}  # what is known of each
        self.draws: set[tuple[int, int, int]] = set()

    def accepts(self, row: int, position: int, index: int, p: float, q: float) -> bool:
        """Whether u q < p, where u is the one uniform number of this coin, however often it is asked."""
        low, high = self.coins.get((row, position, index), (0.0, 1.0))
        threshold = min(max(1.0 if p >= q > 0 else p / q if q > 0 else 0.0, low), high)
        accepted = self.chance.decide([high - threshold, threshold - low]) == 1
        self.coins[row, position, index] = (low, threshold) if accepted else (threshold, high)
        return accepted

    def choose(self, row: int, position: int, weights: Law) -> int:
        assert self.last is None, "a rule draws once"
        total = float(np.sum(np.asarray(weights)))
        assert total > 0, "a rule draws from something"
        self.last = np.asarray(weights, np.float64) / total
        return AS_DRAWN

    def draft(
        self, row: int, position: int, index: int, weights: Law, count: int, tokens: None = None
    ) -> list[int]:
        assert (row, position, index) not in self.draws, "a draw is made once"
        self.draws.add((row, position, index))
        weights, drawn = np.array(weights, np.float64), []
        while len(drawn) < count and weights.sum() > 0:
            drawn.append(self.chance.decide(weights))
            weights[drawn[-1]] = 0
        return drawn


class LawsByPath:
    """Stands in for `paceline.laws.Laws`: looks the law up by the drafted tokens above a node."""

    def __init__(self, draft: Draft, p: Laws, chance: Chance) -> None:
        self.p = p
        self.chance = chance
        self.paths: dict[int, Path] = {draft.roots[0]: ()}
        for node in range(draft.roots[0] + 1, len(draft.tokens)):
            self.paths[node] = (*self.paths[int(draft.parents[node])], int(draft.tokens[node]))

    def law(self, node: int) -> Law:
        return self.p[self.paths[node]]

    def draw(self, node: int, noise: object) -> int:
        return self.chance.decide(self.law(node))


ROW = View([0], [[0, 0]], [1], [2], [None], [0], [1], ["d"], coupled=False)  # type: ignore[list-item]
"""One row that decodes."""


@dataclass
class Enumerated:
    """What a rule does over all drafts and all coins.

    error     largest absolute difference between the joint law of what it emits, extended by the target,
              and the target's
    accepted  expected number of accepted tokens
    lengths   numbers of accepted tokens that have a probability above zero
    refused   probability that less than the longest drafted path is accepted
    total     probability of all branches, 1 but for rounding
    """

    error: float
    variation: float
    accepted: float
    lengths: frozenset[int]
    refused: float
    total: float


def enumerated(rule: Rule, p: Laws, draft: Callable[[Chance], Tree]) -> Enumerated:
    """Run the rule on every tree that `draft` makes, with every coin."""
    vocabulary = len(p[()])
    emitted: dict[Path, Law] = {}
    accepted = refused = total = 0.0
    for chance_of_tree, tree in branches(draft):
        packed = Draft.pack(ROW, [tree])
        depth = max(packed.positions) - packed.positions[packed.roots[0]]
        for probability, (path, law) in branches(lambda chance, packed=packed: run(rule, packed, p, chance)):
            weight = chance_of_tree * probability
            emitted[path] = emitted.get(path, np.zeros(vocabulary)) + weight * law
            accepted += weight * len(path)
            refused += weight * (len(path) < depth)
            total += weight
    differences = _differences(emitted, p, vocabulary)
    lengths = frozenset(len(path) for path, law in emitted.items() if law.sum() > 0)
    return Enumerated(
        float(np.abs(differences).max()),
        float(np.abs(differences).sum()) / 2,
        accepted,
        lengths,
        refused,
        total,
    )


def run(rule: Rule, draft: Draft, p: Laws, chance: Chance) -> tuple[Path, Law]:
    """Tokens accepted, and the law of the one after them."""
    laws, noise = LawsByPath(draft, p, chance), NoiseByChance(chance)
    verdict = rule(draft, laws, noise)  # type: ignore[arg-type]
    path, token = verdict.paths[0], verdict.next_tokens[0]
    law = noise.last if token == AS_DRAWN else np.eye(len(p[()]))[token]
    assert law is not None
    return tuple(int(draft.tokens[node]) for node in path), law


def _differences(emitted: Mapping[Path, Law], p: Laws, vocabulary: int) -> Law:
    """Joint law of what was emitted, extended by the target to the greatest length, minus the target's."""
    length = max(map(len, emitted)) + 1
    differences = []
    for text in itertools.product(range(vocabulary), repeat=length):
        ahead = [p[text[:place]][text[place]] for place in range(length)]
        found = sum(
            emitted[text[:place]][text[place]] * np.prod(ahead[place + 1 :])
            for place in range(length)
            if text[:place] in emitted
        )
        differences.append(found - np.prod(ahead))
    return np.array(differences)


# Laws to try -------------------------------------------------------------------------------------------


def every(vocabulary: int, depth: int, law: Callable[[], Law]) -> dict[Path, Law]:
    """A law for every text of at most `depth` tokens."""
    return {path: law() for d in range(depth + 1) for path in itertools.product(range(vocabulary), repeat=d)}


def laws(kind: str, vocabulary: int, depth: int, seed: int) -> tuple[dict[Path, Law], dict[Path, Law]]:
    """The target's laws and the drafter's, of one kind of `LAW_KINDS`."""
    rng = np.random.default_rng(seed)

    def any_law() -> Law:
        return rng.dirichlet(np.ones(vocabulary))

    def zeroed() -> Law:
        law = any_law()
        law[rng.integers(vocabulary)] = 0
        return law / law.sum()

    def one_hot() -> Law:
        return np.eye(vocabulary)[rng.integers(vocabulary)]

    p = every(vocabulary, depth, any_law)
    if kind == "random":
        return p, every(vocabulary, depth, any_law)
    if kind == "equal":
        return p, {path: law.copy() for path, law in p.items()}
    if kind == "disjoint":
        q = every(vocabulary, depth, zeroed)
        return {path: (law == 0) / (law == 0).sum() for path, law in q.items()}, q
    if kind == "drafter certain":
        return p, every(vocabulary, depth, one_hot)
    if kind == "zero entries":
        return every(vocabulary, depth, zeroed), every(vocabulary, depth, zeroed)
    assert kind == "target certain"
    return every(vocabulary, depth, one_hot), every(vocabulary, depth, any_law)


LAW_KINDS = ("random", "equal", "disjoint", "drafter certain", "zero entries", "target certain")

# Drafts to try -----------------------------------------------------------------------------------------

Shape = tuple["Shape", ...]
"""The shapes below a node, one per child; () is a leaf."""


def levels(*widths: int) -> Shape:
    """Every node of level i has widths[i] children."""
    return (levels(*widths[1:]),) * widths[0] if widths else ()


def height(shape: Shape) -> int:
    return 1 + max(map(height, shape)) if shape else 0


def chain(shape: Shape) -> bool:
    return len(shape) <= 1 and all(map(chain, shape))


def planned(shape: Shape, kinds: Sequence[str], q: Laws) -> Callable[[Chance], Tree]:
    """Makes drafts of one shape. The children of a node are in turn of these kinds: "fixed", "iid",
    "without" replacement, or so from an "other" law than their siblings."""

    def make(chance: Chance) -> Tree:
        tokens: list[int] = []
        parents: list[int] = []
        origins: dict[int, Origin] = {}

        def add(shape: Shape, parent: int, path: Path) -> None:
            law = q[path]
            other = np.roll(law, 1)
            taken: dict[int, list[int]] = {id(law): [], id(other): []}  # tokens drawn from each
            nodes = []
            for number, below in enumerate(shape):
                kind = kinds[number % len(kinds)]
                source = other if kind == "other" else law
                drawn = Drawn.IID if kind == "iid" else Drawn.WITHOUT_REPLACEMENT
                if kind == "fixed":
                    token = (int(law.argmax()) + number) % len(law)
                else:
                    weights = source.copy()
                    if drawn is Drawn.WITHOUT_REPLACEMENT:
                        weights[taken[id(source)]] = 0
                    if not weights.sum() > 0:
                        continue
                    token = chance.decide(weights)
                    origins[len(tokens)] = Origin(drawn, source)
                    taken[id(source)].append(token)
                nodes.append((len(tokens), (*path, token), below))
                tokens.append(token)
                parents.append(parent)
            for node, down, below in nodes:
                add(below, node, down)

        add(shape, -1, ())
        return Tree(tokens, parents, origins)

    return make


def grown(
    q: Laws,
    widths: Sequence[int],
    drawn: Drawn,
    go_on: Callable[[drafting.Prospect], bool] = drafting.always,
    budget: Budget | None = None,
) -> Callable[[Chance], Tree]:
    """Makes drafts by `paceline.drafting.grow`, its noise stood in for."""

    def make(chance: Chance) -> Tree:
        real, drafting.Noise = drafting.Noise, lambda seeds: NoiseByChance(chance)  # type: ignore
        try:
            [tree] = drafting.grow(
                ROW,
                [budget or Budget(99, len(widths))],
                lambda paths: [q[path] for _, path in paths],
                widths=widths,
                drawn=drawn,
                go_on=go_on,
            )
        finally:
            drafting.Noise = real  # type: ignore[misc]
        return tree

    return make


DECLARATIONS: Mapping[str, tuple[str, ...]] = {
    "fixed": ("fixed",),
    "iid": ("iid",),
    "without replacement": ("without",),
    "mixed": ("iid", "fixed", "without", "other", "without"),
}
KINDS: Mapping[str, frozenset[Drawn]] = {
    "fixed": frozenset({Drawn.FIXED}),
    "iid": frozenset({Drawn.IID}),
    "without replacement": frozenset({Drawn.WITHOUT_REPLACEMENT}),
    "mixed": frozenset({Drawn.FIXED, Drawn.IID, Drawn.WITHOUT_REPLACEMENT}),
}


SHAPES: Mapping[Shape, int] = {
    levels(1): 3,
    levels(1, 1): 3,
    levels(1, 1, 1): 2,
    levels(2): 3,
    levels(3): 3,
    levels(4): 3,
    levels(1, 2): 3,
    levels(2, 1): 3,
    levels(2, 2): 3,
    levels(3, 1): 3,
    levels(2, 1, 1): 2,
    ((), ((), ())): 3,
    (((), ()), ()): 3,
    (((),), (), ((), ())): 2,
    ((((),), ()), ()): 2,
}
"""{shape of a tree: vocabulary of its laws}: all that a rule is tried on."""


def takes(rule: Rule, shape: Shape, declaration: str) -> bool:
    """Whether the rule keeps its promise for such drafts."""
    return KINDS[declaration] <= rule.takes and (rule.trees or chain(shape))


def case(rule: Rule, shape: Shape, declaration: str, kind: str, seed: int = 0) -> Enumerated:
    """One rule on one shape of tree, declaration and kind of law."""
    vocabulary = SHAPES[shape]
    p, q = laws(kind, vocabulary, height(shape) + 1, seed)
    return enumerated(rule, p, planned(shape, DECLARATIONS[declaration], q))


def seeds(shape: Shape) -> int:
    """How many laws of each kind a shape is tried with; chains are quick."""
    return 8 if chain(shape) else 1


def cases(
    rule: Rule,
    shapes: Sequence[Shape] = tuple(SHAPES),
    declarations: Sequence[str] = tuple(DECLARATIONS),
    kinds: Sequence[str] = LAW_KINDS,
) -> Iterator[Enumerated]:
    """The rule on all shapes and declarations that it takes, and all kinds of laws."""
    for shape in shapes:
        for declaration in declarations:
            if takes(rule, shape, declaration):
                for kind in kinds:
                    for seed in range(seeds(shape)):
                        yield case(rule, shape, declaration, kind, seed)


def worst_error(rule: Rule, *which: Sequence[Any]) -> float:
    """The rule's largest error over its `cases`.

    Raises AssertionError if there are none, if nothing was ever accepted, or if nothing was refused.
    """
    found = list(cases(rule, *which))
    assert max(one.accepted for one in found) > 0.1
    assert max(one.refused for one in found) > 0.1
    assert all(abs(one.total - 1) < 1e-12 for one in found)
    return max(one.error for one in found)


def is_caught(rule: Rule, *which: Sequence[Any]) -> bool:
    """Whether any of its `cases` shows that the rule is not exact."""
    return any(one.error > 1e-6 for one in cases(rule, *which))
