"""Several drafters behind one: each request is drafted for by the drafter it asked for.

What a drafter does wrong ends here: its rows are decoded plainly in that step, the failure is counted, and
a drafter that fails often is left alone for a while (docs/scheduling.md).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import index
from time import perf_counter

from array_api_compat import array_namespace

from paceline.breaker import PAUSE, Breaker
from paceline.core import NOTHING, UNSURE, Array, Budget, Drafter, Drawn, Origin, Rule, Step, Tree, View

LAW_TOLERANCE = 1e-4
"""How far from 1 a drafter's law may sum: the rounding of a softmax in float32."""
SLOW = 2.0
"""Seconds that a proposal for all rows of a step may take. There is no stopping it, for one thread runs
everything: a longer one is used, and then its drafter is left alone like one that failed too often."""

_log = logging.getLogger(__name__)


class BadDraft(ValueError):
    """What a drafter proposed cannot be used. reason: one word for it, to count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Router:
    """Hands each drafter its own rows, and stands between drafters and target.

    A tree that is larger than its budget is cut to it: budgets shrink near an answer's end, and a drafter
    that overlooks this costs nothing. A tree that is not a tree, holds a token that does not exist, or was
    not made as its drafter declares, is not used.

    Where a request's grammar leaves no choice about the next tokens, these are drafted in front of what the
    drafter proposes, if it proposes anything ever and the rule takes fixed tokens. Under a rule that
    compares laws they are drafted alone: which tokens are drafted beside drawn ones is no choice to make
    after the draw.

    clock: seconds, from any start.
    """

    def __init__(
        self,
        drafters: Mapping[str, Drafter],
        vocab_size: int,
        rule: Rule,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._drafters = dict(drafters)
        self._vocab_size = vocab_size
        self._rule = rule
        self._clock = clock
        self._names_of_slots: dict[int, str] = {}
        self._breakers = {name: Breaker(clock) for name in drafters}
        self._asked: set[str] = set()  # drafters that take part in this step
        self.failures: dict[str, Counter[str]] = defaultdict(Counter)
        self.needs: frozenset[str] = frozenset().union(*(d.needs for d in drafters.values()))

    @property
    def off(self) -> frozenset[str]:
        """Drafters that are left alone for now."""
        return frozenset(name for name, breaker in self._breakers.items() if not breaker.closed)

    def taps(self, view: View) -> frozenset[str]:
        """The feature taps that the drafters of these rows want to see."""
        if not self.needs:
            return self.needs
        return frozenset().union(*(self._drafters[name].needs for name in set(view.drafters)))

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        """One tree per row that can be used."""
        forced = self._forced(view, budgets)
        alone = forced and not (view.coupled and self._rule.trees)
        if alone:
            budgets = [Budget(0, 0) if row in forced else budget for row, budget in enumerate(budgets)]
        trees = [NOTHING] * len(budgets)
        self._asked.clear()
        for name, rows in _rows_by_drafter(view).items():
            self._names_of_slots.update((view.slots[row], name) for row in rows)
            if self._breakers[name].closed:
                part = view if len(rows) == len(budgets) else view.rows(rows)
                own = self._ask(name, part, [budgets[row] for row in rows])
                for row, tree in zip(rows, own, strict=True):
                    trees[row] = tree
        for row, tokens in forced.items():
            trees[row] = Tree.chain(tokens) if alone else _merged(tokens, trees[row], budgets[row].nodes)
        return trees

    def _ask(self, name: str, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        """What one drafter proposes for its rows, and nothing for those where that is no use."""
        trees = [NOTHING] * len(budgets)
        started = self._clock()
        try:
            proposed = self._drafters[name].propose(view, budgets)
            if len(proposed) != len(budgets):
                raise BadDraft("shape", f"drafter {name}: {len(proposed)} trees for {len(budgets)} rows")
        except Exception as error:
            self._failed(name, error)
            return trees
        self._asked.add(name)
        fault: BadDraft | None = None
        for row, tree in enumerate(proposed):
            try:
                if len(tree.tokens):
                    trees[row] = self.checked(name, tree, budgets[row], view.coupled)
            except BadDraft as error:
                fault = error
            except Exception as error:
                fault = BadDraft("shape", f"drafter {name}: {tree!r} is no tree: {error!r}")
        if fault is None and (seconds := self._clock() - started) > SLOW:
            fault = BadDraft("slow", f"drafter {name}: took {seconds:.1f} s to propose")
        if fault is None:
            self._breakers[name].worked()
        else:
            self._failed(name, fault)
        return trees

    def _failed(self, name: str, error: Exception) -> None:
        reason = error.reason if isinstance(error, BadDraft) else "raised"
        self.failures[name][reason] += 1
        self._breakers[name].failed(once_is_enough=reason == "slow")
        trace = None if isinstance(error, BadDraft) else error
        _log.warning("drafter %s is of no use in this step (%s): %s", name, reason, error, exc_info=trace)
        if not self._breakers[name].closed:
            _log.warning("drafter %s is left alone for %g s", name, PAUSE)

    def _forced(self, view: View, budgets: Sequence[Budget]) -> dict[int, list[int]]:
        """{row: tokens that its grammar leaves no choice about}, as far as they may be drafted."""
        forced: dict[int, list[int]] = {}
        for row, controls in enumerate(view.controls):
            budget = min(budgets[row])
            if controls.matcher is None or not budget or Drawn.FIXED not in self._rule.takes:
                continue
            if self._drafters[view.drafters[row]].drawn and (tokens := controls.matcher.forced()):
                forced[row] = tokens[:budget]
        return forced

    def observe(self, step: Step) -> None:
        """Each drafter that took part sees what happened to its rows."""
        for name, rows in _rows_by_drafter(step.view).items():
            if name in self._asked:
                part = step if len(rows) == len(step.view.slots) else step.rows(rows)
                try:
                    self._drafters[name].observe(part)
                except Exception as error:
                    self._failed(name, error)

    def release(self, slots: Sequence[int]) -> None:
        """Tell each drafter which of its sequences ended."""
        for slot in slots:
            name = self._names_of_slots.pop(slot, None)
            if name is not None:
                try:
                    self._drafters[name].release([slot])
                except Exception as error:
                    self._failed(name, error)

    def checked(self, name: str, tree: Tree, budget: Budget, coupled: bool) -> Tree:
        """The tree cut to its budget, in lists. Raises BadDraft naming the drafter if it is malformed, or not
        what the drafter declares."""
        tokens, parents, origins, confidences, sources = tree
        for what, column in (("parents", parents), ("confidences", confidences), ("sources", sources)):
            if len(column) != len(tokens) and (len(column) or column is parents):
                raise BadDraft("shape", f"drafter {name}: {len(tokens)} tokens but {len(column)} {what}")
        try:
            whole, above = [*map(index, tokens)], [*map(index, parents)]
        except TypeError:
            raise BadDraft(
                "token", f"drafter {name}: tokens and parents are whole numbers, got {tree[:2]}"
            ) from None
        if min(whole) < 0 or max(whole) >= self._vocab_size:
            raise BadDraft("token", f"drafter {name}: a token outside 0 to {self._vocab_size - 1} in {whole}")
        if not all(0 <= confidence <= 1 for confidence in confidences):
            raise BadDraft(
                "confidence", f"drafter {name}: a confidence outside 0 to 1 in {list(confidences)}"
            )
        for node, origin in origins.items():
            if not (0 <= node < len(whole) and isinstance(origin, Origin)):
                raise BadDraft("shape", f"drafter {name}: {origin} is not how token {node} was drawn")
        depths: list[int] = []
        for node, parent in enumerate(above):
            if not -1 <= parent < node:
                raise BadDraft(
                    "parent", f"drafter {name}: parent {parent} of node {node} does not come before it"
                )
            depths.append(depths[parent] + 1 if parent >= 0 else 1)
        tree = Tree(whole, above, origins, list(confidences), list(sources))
        if not coupled:
            self._check_declaration(name, tree)
        if len(tokens) <= budget.nodes and max(depths) <= budget.depth:
            return tree
        if not coupled and origins:
            raise BadDraft(
                "budget",
                f"drafter {name}: {len(tokens)} tokens, {max(depths)} deep, exceed the budget of "
                f"{budget.nodes}, {budget.depth} deep; drawn tokens may not be cut after the draw",
            )
        return _cut(tree, depths, budget)

    def _check_declaration(self, name: str, tree: Tree) -> None:
        drafter = self._drafters[name]
        if not drafter.branches and len(set(tree.parents)) < len(tree.parents):
            raise BadDraft(
                "declared", f"drafter {name}: declares chains, proposed a branch: {list(tree.parents)}"
            )
        kinds = {origin.drawn for origin in tree.origins.values()}
        if len(tree.origins) < len(tree.tokens):
            kinds.add(Drawn.FIXED)
        if undeclared := kinds - drafter.drawn:
            raise BadDraft(
                "declared", f"drafter {name}: {', '.join(kind.name for kind in undeclared)} not declared"
            )
        for law in {id(origin.law): origin.law for origin in tree.origins.values()}.values():
            if law.shape != (self._vocab_size,) or not _sums_to_one(law):
                raise BadDraft(
                    "law",
                    f"drafter {name}: a law is probabilities of {self._vocab_size} tokens that sum to 1, "
                    f"got {law.shape[0]} that sum to {float(law.sum()):.6g}",
                )
        siblings = set()
        for node, origin in tree.origins.items():
            token = tree.tokens[node]
            again = (tree.parents[node], id(origin.law), token)
            if not origin.law[token] > 0 or again in siblings:
                raise BadDraft("law", f"drafter {name}: token {token} was drawn from a law that excludes it")
            if origin.drawn is Drawn.WITHOUT_REPLACEMENT:
                siblings.add(again)


def _sums_to_one(law: Array) -> bool:
    xp = array_namespace(law)
    return abs(float(xp.sum(law)) - 1) < LAW_TOLERANCE and float(xp.min(law)) >= 0


def _cut(tree: Tree, depths: Sequence[int], budget: Budget) -> Tree:
    """The first nodes of the tree that fit into the budget; with a node that is too deep goes all below."""
    kept: list[int] = []
    held = {-1}
    for node, depth in enumerate(depths):
        if depth <= budget.depth and len(kept) < budget.nodes and tree.parents[node] in held:
            held.add(node)
            kept.append(node)
    return tree.some(kept)


def _merged(chain: Sequence[int], tree: Tree, nodes: int) -> Tree:
    """The chain, and the tree's paths where they leave it, up to so many nodes in all. The tree's tokens
    are coupled or fixed: it carries no law that would have to be kept."""
    tokens, parents = list(chain), list(range(-1, len(chain) - 1))
    confidences, sources = [1.0] * len(chain), [0] * len(chain)
    places: dict[int, int] = {-1: -1}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        above = places.get(parent)
        if above is None:
            continue
        if above + 1 < len(chain) and chain[above + 1] == token:
            places[node] = above + 1
        elif len(tokens) < nodes:
            places[node] = len(tokens)
            tokens.append(token)
            parents.append(above)
            confidences.append(tree.confidences[node] if tree.confidences else UNSURE)
            sources.append(tree.sources[node] if tree.sources else 1)
    return Tree(tokens, parents, confidences=confidences, sources=sources)


def _rows_by_drafter(view: View) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(view.drafters):
        rows.setdefault(name, []).append(row)
    return rows
