"""Several drafters behind one: each request is drafted for by the drafter it asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from array_api_compat import array_namespace

from paceline.core import NOTHING, UNSURE, Budget, Drafter, Drawn, Rule, Step, Tree, View

LAW_TOLERANCE = 1e-4
"""How far from 1 a drafter's law may sum: the rounding of a softmax in float32."""


class Router:
    """Hands each drafter its own rows, and stands between drafters and target.

    A tree that is larger than its budget is cut to it: budgets shrink near an answer's end, and a drafter
    that overlooks this costs nothing. A tree that is not a tree, holds a token that does not exist, or was
    not made as its drafter declares, is a mistake in the drafter: ValueError naming it.

    Where a request's grammar leaves no choice about the next tokens, these are drafted in front of what the
    drafter proposes, if it proposes anything ever and the rule takes fixed tokens. Under a rule that
    compares laws they are drafted alone: which tokens are drafted beside drawn ones is no choice to make
    after the draw.
    """

    def __init__(self, drafters: Mapping[str, Drafter], vocab_size: int, rule: Rule) -> None:
        self._drafters = dict(drafters)
        self._vocab_size = vocab_size
        self._rule = rule
        self._names_of_slots: dict[int, str] = {}
        self.needs: frozenset[str] = frozenset().union(*(d.needs for d in drafters.values()))

    def taps(self, view: View) -> frozenset[str]:
        """The feature taps that the drafters of these rows want to see."""
        if not self.needs:
            return self.needs
        return frozenset().union(*(self._drafters[name].needs for name in set(view.drafters)))

    def propose(self, view: View, budgets: Sequence[Budget]) -> list[Tree]:
        """One checked tree per row."""
        forced = self._forced(view, budgets)
        alone = forced and not (view.coupled and self._rule.trees)
        if alone:
            budgets = [Budget(0, 0) if row in forced else budget for row, budget in enumerate(budgets)]
        trees = [NOTHING] * len(budgets)
        for name, rows in _rows_by_drafter(view).items():
            self._names_of_slots.update((view.slots[row], name) for row in rows)
            part = view if len(rows) == len(budgets) else view.rows(rows)
            proposed = self._drafters[name].propose(part, [budgets[row] for row in rows])
            if len(proposed) != len(rows):
                raise ValueError(f"drafter {name}: {len(proposed)} trees for {len(rows)} rows")
            for row, tree in zip(rows, proposed, strict=True):
                if len(tree.tokens):
                    trees[row] = self._checked(name, tree, budgets[row], view.coupled)
        for row, tokens in forced.items():
            trees[row] = Tree.chain(tokens) if alone else _merged(tokens, trees[row], budgets[row].nodes)
        return trees

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
        """Each drafter sees what happened to its rows."""
        for name, rows in _rows_by_drafter(step.view).items():
            part = step if len(rows) == len(step.view.slots) else step.rows(rows)
            self._drafters[name].observe(part)

    def release(self, slots: Sequence[int]) -> None:
        """Tell each drafter which of its sequences ended."""
        for slot in slots:
            name = self._names_of_slots.pop(slot, None)
            if name is not None:
                self._drafters[name].release([slot])

    def _checked(self, name: str, tree: Tree, budget: Budget, coupled: bool) -> Tree:
        """The tree cut to its budget. Raises ValueError naming the drafter if it is malformed, or not
        what the drafter declares."""
        tokens, parents, origins, confidences, sources = tree
        if len(tokens) != len(parents):
            raise ValueError(f"drafter {name}: {len(tokens)} tokens but {len(parents)} parents")
        if len(confidences) not in (0, len(tokens)):
            raise ValueError(f"drafter {name}: {len(tokens)} tokens but {len(confidences)} confidences")
        if len(sources) not in (0, len(tokens)):
            raise ValueError(f"drafter {name}: {len(tokens)} tokens but {len(sources)} sources")
        if min(tokens) < 0 or max(tokens) >= self._vocab_size:
            raise ValueError(f"drafter {name}: a token outside 0 to {self._vocab_size - 1} in {list(tokens)}")
        depths: list[int] = []
        for node, parent in enumerate(parents):
            if not -1 <= parent < node:
                raise ValueError(f"drafter {name}: parent {parent} of node {node} does not come before it")
            depths.append(depths[parent] + 1 if parent >= 0 else 1)
        if not coupled:
            self._check_declaration(name, tree)
        if len(tokens) <= budget.nodes and max(depths) <= budget.depth:
            return tree
        if not coupled and origins:
            raise ValueError(
                f"drafter {name}: {len(tokens)} tokens, {max(depths)} deep, exceed the budget of "
                f"{budget.nodes}, {budget.depth} deep; drawn tokens may not be cut after the draw"
            )
        return _cut(tree, depths, budget)

    def _check_declaration(self, name: str, tree: Tree) -> None:
        drafter = self._drafters[name]
        if not drafter.branches and len(set(tree.parents)) < len(tree.parents):
            raise ValueError(f"drafter {name}: declares chains, proposed a branch: {list(tree.parents)}")
        kinds = {origin.drawn for origin in tree.origins.values()}
        if len(tree.origins) < len(tree.tokens):
            kinds.add(Drawn.FIXED)
        if undeclared := kinds - drafter.drawn:
            raise ValueError(f"drafter {name}: {', '.join(kind.name for kind in undeclared)} not declared")
        for law in {id(origin.law): origin.law for origin in tree.origins.values()}.values():
            xp = array_namespace(law)
            if law.shape != (self._vocab_size,) or not abs(float(xp.sum(law)) - 1) < LAW_TOLERANCE:
                raise ValueError(
                    f"drafter {name}: a law is probabilities of {self._vocab_size} tokens that sum to 1, "
                    f"got {law.shape[0]} that sum to {float(xp.sum(law)):.6g}"
                )


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
