"""Several drafters proposing one tree.

Every part proposes a tree of its own. Trees of fixed tokens, and under a coupled rule all trees, are merged:
paths that begin alike share their nodes, and a node says which parts propose it. Its confidence is that at
least one of them is right, as if they were independent, which they are not: a policy corrects it by what
happens to tokens that just these parts propose.

Under a rule that compares laws, trees of drawn tokens stand beside the others, for a drawn token that is not
scored because another part proposes it too would be one left out for what it is. The parts share the budget
beforehand and draw with noise of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from paceline.core import NOTHING, UNSURE, Budget, Drafter, Drawn, Origin, Step, Tree, View
from paceline.errors import ConfigError
from paceline.noise import stream_seed
from paceline.rest import Rest

MAX_PARTS = 8
CLASSES = 4
"""Of steps, by how sure the parts before are of what comes next: a part may be worth its time only where they
know nothing."""


class Part:
    """A drafter in a mixture, whether it is worth its time, and what it did in this step.

    rests    one for each class of steps; rest: that of this step
    worked   whether it was asked; seconds: that it took
    """

    __slots__ = ("drafter", "name", "rest", "rests", "seconds", "worked")

    def __init__(self, name: str, drafter: Drafter) -> None:
        self.name = name
        self.drafter = drafter
        self.rests = [Rest() for _ in range(CLASSES)]
        self.rest = self.rests[0]
        self.seconds = 0.0
        self.worked = False


class Mixture:
    """Merges what its parts propose. parts: {name: drafter}, 2 to 8.

    Raises ConfigError for another number of parts.
    """

    def __init__(self, parts: Mapping[str, Drafter]) -> None:
        if not 1 < len(parts) <= MAX_PARTS:
            raise ConfigError(
                f"a mixture has 2 to {MAX_PARTS} different parts, got {'+'.join(parts) or 'none'}"
            )
        self._parts = [Part(name, drafter) for name, drafter in parts.items()]
        self.needs: frozenset[str] = frozenset().union(*(d.needs for d in parts.values()))
        self.whole = any(drafter.whole for drafter in parts.values())
        self.drawn: frozenset[Drawn] = frozenset().union(*(d.drawn for d in parts.values()))
        self.branches = True
        self._trees: Sequence[Tree] = ()
        self._drafting = 0  # rows that something may be drafted for

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """One merged tree per row, of the parts that are worth their time."""
        wanted = self._drafting = sum(budget.nodes > 0 for budget in budgets)
        proposed: list[Sequence[Tree]] = []
        shares = budgets
        if not view.coupled:
            parts = len(self._parts)
            shares = [Budget(budget.nodes // parts, budget.depth) for budget in budgets]
        for place, part in enumerate(self._parts):
            sure = _certainty(proposed, budgets) if view.coupled else 0.0
            part.rest = part.rests[min(CLASSES - 1, int(CLASSES * sure))]
            part.worked = wanted > 0 and part.rest.begin()
            if wanted and not part.worked:
                proposed.append([NOTHING] * len(budgets))
                continue
            seen = view
            if place and not view.coupled:
                seen = replace(view, seeds=[stream_seed(seed, place) for seed in view.seeds])
            started = perf_counter()
            proposed.append(part.drafter.propose(seen, shares))
            part.seconds = perf_counter() - started
        self._trees = [
            merged([trees[row] for trees in proposed], budget.nodes, view.coupled)
            for row, budget in enumerate(budgets)
        ]
        return self._trees

    def observe(self, step: Step) -> None:
        """Let the parts see the step, and judge whether they were worth their time: what one saved are
        accepted tokens that no other part proposed, or that stand below such a token. A part that rests sees
        nothing, unless it must see all of a text."""
        paths = [step.emitted(row)[:-1] for row in range(len(step.view.slots))]
        worth = step.seconds / (sum(len(path) + 1 for path in paths) or 1)
        sources = [_sources(tree, path) for tree, path in zip(self._trees, paths, strict=True) if path]
        for place, part in enumerate(self._parts):
            if part.worked:
                own = 1 << place
                gained = 0
                for path_sources in sources:
                    for depth, source in enumerate(path_sources):
                        if source == own:
                            gained += len(path_sources) - depth
                            break
                started = perf_counter()
                part.drafter.observe(step)
                spent = part.seconds + perf_counter() - started
                part.rest.worked(gained * worth - spent, self._drafting)
            elif not part.rest.resting or part.drafter.whole:
                part.drafter.observe(step)

    def release(self, slots: Sequence[int]) -> None:
        """These sequences ended, for every part."""
        for part in self._parts:
            part.drafter.release(slots)


def _certainty(proposed: Sequence[Sequence[Tree]], budgets: Sequence[Budget]) -> float:
    """The confidence of the likeliest next token that is proposed already, its mean over rows that draft."""
    drafting = [row for row, budget in enumerate(budgets) if budget.nodes]
    if not proposed or not drafting:
        return 0.0
    likeliest = (max([_surest(trees[row]) for trees in proposed]) for row in drafting)
    return sum(likeliest) / len(drafting)


def _surest(tree: Tree) -> float:
    """The largest confidence of a first token; 0 if there is none that says one."""
    firsts = (own for parent, own in zip(tree.parents, tree.confidences, strict=False) if parent < 0)
    return max(firsts, default=0.0)


def _sources(tree: Tree, path: Sequence[int]) -> list[int]:
    """Who proposed each token of an accepted path."""
    sources: list[int] = []
    above = -1
    for node, parent in enumerate(tree.parents):
        if parent == above and tree.tokens[node] == path[len(sources)]:
            sources.append(tree.sources[node])
            above = node
            if len(sources) == len(path):
                break
    return sources


def merged(trees: Sequence[Tree], nodes: int, coupled: bool = True) -> Tree:
    """One tree of the trees that several parts propose, of at most so many nodes: of those that may be left
    out, the likeliest."""
    proposing = [place for place, tree in enumerate(trees) if tree.tokens]
    if not proposing:
        return NOTHING
    if len(proposing) == 1 and len(trees[proposing[0]].tokens) <= nodes:
        alone = trees[proposing[0]]
        return alone._replace(sources=[1 << proposing[0]] * len(alone.tokens))
    tokens: list[int] = []
    parents: list[int] = []
    confidences: list[float] = []
    sources: list[int] = []
    origins: dict[int, Origin] = {}
    nodes_of: dict[tuple[int, int], int] = {}
    # What is fixed comes first: it is there before anything is drawn.
    order = sorted(proposing, key=lambda place: not coupled and bool(trees[place].origins))
    for place in order:
        tree = trees[place]
        bit = 1 << place
        apart = not coupled and bool(tree.origins)
        own: list[int] = []
        claims = tree.confidences or [UNSURE] * len(tree.tokens)
        for token, parent, claim in zip(tree.tokens, tree.parents, claims, strict=True):
            above = own[parent] if parent >= 0 else -1
            node = None if apart else nodes_of.get((above, token))
            if node is None:
                node = len(tokens)
                tokens.append(token)
                parents.append(above)
                confidences.append(claim)
                sources.append(bit)
                if not apart:
                    nodes_of[above, token] = node
            elif not sources[node] & bit:
                confidences[node] = 1 - (1 - confidences[node]) * (1 - claim)
                sources[node] |= bit
            own.append(node)
        if apart:
            origins.update((own[node], origin) for node, origin in tree.origins.items())
    whole = Tree(tokens, parents, origins, confidences, sources)
    if len(tokens) <= nodes:
        return whole
    assert not origins, "parts that draw keep to shares of the budget"
    paths: list[float] = []
    for parent, confidence in zip(parents, confidences, strict=True):
        paths.append(confidence * paths[parent] if parent >= 0 else confidence)
    return whole.some(sorted(sorted(range(len(tokens)), key=lambda node: -paths[node])[:nodes]))
