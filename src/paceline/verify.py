"""What a rule sees of one row, and what makes a rule of a function.

A rule is written for one row, as its paper writes it: a function from a `Row` to the accepted path and
the token after it. Laws are probabilities float64 [V] in the array library of the target's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

from array_api_compat import array_namespace, device

from paceline.core import Array, Draft, Drafter, Drawn, Promise, Rule, Verdict
from paceline.errors import IncompatibleDrafter
from paceline.laws import Laws
from paceline.noise import Noise

Outcome = tuple[list[int], int]
"""The accepted nodes from the root's child downwards, and the token after them."""

ANY_LAW = frozenset({Drawn.FIXED, Drawn.IID, Drawn.WITHOUT_REPLACEMENT})
"""All tokens whose law is known: a fixed one's law has one token."""


class Row:
    """One row of a draft in the hands of a rule. `root` is its last known token."""

    __slots__ = (
        "_draft",
        "_end",
        "_known",
        "_laws",
        "_noise",
        "_parents",
        "_position",
        "_row",
        "_tokens",
        "root",
    )

    def __init__(
        self,
        draft: Draft,
        row: int,
        tokens: list[int],
        parents: list[int],
        end: int,
        laws: Laws,
        noise: Noise,
    ) -> None:
        self.root = draft.roots[row]
        self._draft = draft
        self._row = row
        self._tokens = tokens
        self._parents = parents
        self._end = end
        self._laws = laws
        self._noise = noise
        self._position = int(draft.positions[self.root]) + 1  # of the first token that this step may emit
        self._known: dict[int, Array] = {}

    def children(self, node: int) -> list[int]:
        """The nodes below `node`, in the order they were drafted in."""
        parents = self._parents
        return [child for child in range(node + 1, self._end) if parents[child] == node]

    def chain(self) -> list[int]:
        """The drafted nodes from the root downwards, where the draft is a chain."""
        return list(range(self.root + 1, self._end))

    def parent(self, node: int) -> int:
        """The node above."""
        return self._parents[node]

    def token(self, node: int) -> int:
        """The node's token."""
        return self._tokens[node]

    def own(self, node: int) -> int:
        """The token that the target itself draws after `node`, with noise keyed by its position."""
        return self._laws.draw(node, self._noise)

    def law(self, node: int) -> Array:
        """The target's law after `node`, p in the papers: float64 [V], not to be changed."""
        if node not in self._known:
            self._known[node] = self._laws.law(node)
        return self._known[node]

    def proposal(self, node: int) -> Array:
        """The law that the drafted node was drawn from, given its earlier siblings, q in the papers:
        float64 [V].

        Raises ValueError if the node's token is impossible under it: the drafter's declaration is false.
        """
        origin, token = self._draft.origins.get(node), self._tokens[node]
        p = self.law(self._parents[node])
        xp = array_namespace(p)
        ids = xp.arange(p.shape[0], device=device(p))
        if origin is None:
            return xp.astype(ids == token, xp.float64)
        q = xp.asarray(origin.law, dtype=xp.float64, device=device(p))
        if origin.drawn is Drawn.WITHOUT_REPLACEMENT:
            siblings = self.children(self._parents[node])
            for sibling in siblings[: siblings.index(node)]:
                earlier = self._draft.origins.get(sibling)
                if earlier is not None and earlier.law is origin.law:
                    q = xp.where(ids == self._tokens[sibling], 0.0, q)
        total = xp.sum(q)  # a law in single precision sums to 1 only nearly
        q = q / total if total > 0 else q
        if not q[token] > 0:
            raise ValueError(f"node {node} holds token {token}, which the law it was drawn from excludes")
        return q

    def accepts(self, node: int, p: Any, q: Any) -> bool:
        """True with probability min(1, p / q), by a coin of the node's own."""
        return self._noise.accepts(self._row, self._position, node - self.root, float(p), float(q))

    def draw(self, weights: Array) -> int:
        """A token drawn in proportion to the weights [V]; a rule draws once, at its end."""
        return self._noise.choose(self._row, self._position, weights)


@dataclass(frozen=True)
class RowRule:
    """A rule that decides row by row. See `paceline.core.Rule` for the fields; `rule` makes one."""

    name: str
    promise: Promise
    takes: frozenset[Drawn]
    trees: bool
    decide: Callable[..., Outcome]
    check: Callable[..., None] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, draft: Draft, laws: Laws, noise: Noise) -> Verdict:
        """Decide every row. Raises IncompatibleDrafter for a draft outside `takes` and `trees`."""
        self._refuse_what_it_does_not_take(draft)
        tokens, parents, offsets = draft.tokens.tolist(), draft.parents.tolist(), draft.offsets.tolist()
        paths: list[list[int]] = []
        next_tokens: list[int] = []
        for number, root in enumerate(draft.roots):
            path: list[int] = []
            token = -1
            if root >= 0:
                row = Row(draft, number, tokens, parents, offsets[number + 1], laws, noise)
                path, token = self.decide(row, **self.settings)
            paths.append(path)
            next_tokens.append(token)
        return Verdict(paths, next_tokens)

    def with_options(self, **settings: Any) -> RowRule:
        """The same rule with these settings. Raises ConfigError for a value out of range."""
        if self.check is not None:
            self.check(**settings)
        return replace(self, settings=settings)

    def _refuse_what_it_does_not_take(self, draft: Draft) -> None:
        for node, origin in draft.origins.items():
            if origin.drawn not in self.takes:
                raise IncompatibleDrafter(f"{takes(self)}; token {node} of the draft is {_say(origin.drawn)}")
        if self.trees and Drawn.FIXED in self.takes:
            return
        parents = draft.parents.tolist()
        for row, root in enumerate(draft.roots):
            drafted = range(root + 1, int(draft.offsets[row + 1])) if root >= 0 else ()
            for node in drafted:
                if Drawn.FIXED not in self.takes and node not in draft.origins:
                    raise IncompatibleDrafter(
                        f"{takes(self)}; token {node} of the draft is {_say(Drawn.FIXED)}"
                    )
                if not self.trees and parents[node] != node - 1:
                    raise IncompatibleDrafter(f"{takes(self)}; token {node} of the draft starts a branch")


def rule(
    promise: Promise,
    *,
    takes: frozenset[Drawn] = ANY_LAW,
    trees: bool = True,
    check: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Outcome]], RowRule]:
    """Make a rule of a function `(row, *, option=default, ...)` from a `Row` to an `Outcome`.

    check: called with the options that a user chose; raises ConfigError for one out of range.
    """

    def make(decide: Callable[..., Outcome]) -> RowRule:
        made = RowRule(decide.__name__, promise, takes, trees, decide, check)
        object.__setattr__(made, "__doc__", decide.__doc__)
        object.__setattr__(made, "__signature__", signature(decide))
        return made

    return make


def refusal(rule: Rule, name: str, drafter: Drafter) -> str | None:
    """Why this rule cannot work with this drafter, as one line that names both; None if it can."""
    if Drawn.COUPLED not in rule.takes and (others := drafter.drawn - rule.takes):
        kinds = " or ".join(map(_say, sorted(others)))
        return f"{takes(rule)}; drafter {name} proposes tokens that are {kinds}"
    if drafter.branches and not rule.trees:
        return f"{takes(rule)}; drafter {name} proposes trees"
    return None


def takes(rule: Rule) -> str:
    """What drafts a rule takes, for messages."""
    kinds = " or ".join(_say(drawn) for drawn in sorted(rule.takes))
    return f"rule {rule.name} takes {'trees' if rule.trees else 'chains'} of tokens that are {kinds}"


def _say(drawn: Drawn) -> str:
    return {
        Drawn.FIXED: "fixed",
        Drawn.IID: "drawn independently",
        Drawn.WITHOUT_REPLACEMENT: "drawn without replacement",
        Drawn.COUPLED: "drawn with the target's noise",
    }[drawn]
