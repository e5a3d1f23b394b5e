"""Lookahead decoding: let the target guess ahead of itself in the same pass, and collect what it guesses.

Beside the tokens it hopes for, a draft holds a *window*: guesses for the next `window` places, refined from
step to step as in Jacobi iteration. Its first level is a chain below the last token; below each of its nodes
hangs a branch of that place's later levels. So a node sees what the method's attention mask lets it see: the
text, the first level up to its place, and its own branch. What the target makes of a branch's last node
completes an n-gram for the pool. Once an n-gram's first token stands in the text, the rest of it is drafted.

The window costs its nodes in every pass and pays only later, through the pool: worth it where a pass over
many tokens takes as long as a pass over one.

Source: Fu et al., "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding", 2024 (arXiv
2402.02057); the window as a tree instead of a mask is our own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from paceline.core import NOTHING, Budget, Drawn, Step, TargetInfo, Tree, View
from paceline.errors import ConfigError

POOL_TOKENS = 1 << 16  # first tokens whose n-grams are kept; those not met for the longest time go first
FIRST_GUESS = 0.3  # confidence in a token of the pool before any was seen to be right or wrong
WINDOW_CONFIDENCE = 0.01
COUNTED = 20.0  # what the first guess counts for, in observations

Gram = tuple[int, ...]


class Pool:
    """n-grams by their first token, at most so many of each: the rest of each, latest first."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._grams: OrderedDict[int, list[Gram]] = OrderedDict()

    def add(self, first: int, rest: Gram) -> None:
        """Take in an n-gram, or make it the latest."""
        grams = self._grams.setdefault(first, [])
        self._grams.move_to_end(first)
        if rest in grams:
            grams.remove(rest)
        grams.insert(0, rest)
        del grams[self._each :]
        if len(self._grams) > POOL_TOKENS:
            self._grams.popitem(last=False)

    def after(self, token: int) -> Sequence[Gram]:
        """What followed this token in the n-grams, latest first."""
        return self._grams.get(token, ())


class Growing:
    """A tree in the making; a token that is there already is not added twice."""

    def __init__(self, budget: Budget) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.confidences: list[float] = []
        self._budget = budget
        self._children: dict[tuple[int, int], int] = {}

    def add(self, path: Sequence[int], confidence: float) -> bool:
        """A path from the root down, if the budget holds all of it; whether it did."""
        above, there = -1, 0
        while there < len(path) and (node := self._children.get((above, path[there]))) is not None:
            above, there = node, there + 1
        if len(path) > self._budget.depth or len(self.tokens) + len(path) - there > self._budget.nodes:
            return False
        for token in path[there:]:
            self._children[above, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(above)
            self.confidences.append(confidence)
            above = len(self.tokens) - 1
        return True


class Lookahead:
    """Proposes n-grams of the pool, and the window."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn = frozenset({Drawn.FIXED})
    branches = True

    def __init__(self, window: int, levels: int, grams: int) -> None:
        self._window = window
        self._levels = levels
        self._pool = Pool(grams)
        # Of each sequence the guesses: levels of tokens; level k, column c stands k + c + 1 places behind
        # the last committed token.
        self._guesses: dict[int, list[list[int]]] = {}
        self._right, self._tried = COUNTED * FIRST_GUESS, COUNTED

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """For each row that decodes: n-grams first, then as much of the window as its budget holds."""
        return [
            self._propose(slot, history, budget) if min(budget) > 0 else NOTHING
            for slot, history, budget in zip(view.slots, view.histories, budgets, strict=True)
        ]

    def _propose(self, slot: int, history: Sequence[int], budget: Budget) -> Tree:
        guesses = self._guesses.get(slot)
        if guesses is None:
            guesses = self._guesses[slot] = [self._fill([], history)]
        tree = Growing(budget)
        for gram in self._pool.after(history[-1]):
            tree.add(gram[: budget.depth], self._right / self._tried)
        for branch in _branches(guesses):
            if not tree.add(branch, WINDOW_CONFIDENCE):
                break
        return Tree(tree.tokens, tree.parents, confidences=tree.confidences)

    def _fill(self, level: Sequence[int], history: Sequence[int]) -> list[int]:
        """The level, made as long as the window with tokens of the text: any guess will do at first."""
        missing = self._window - len(level)
        return [*level, *(history[-1 - column % len(history)] for column in range(missing))]

    def observe(self, step: Step) -> None:
        """Refine the guesses, and collect n-grams from them."""
        for row, root in enumerate(step.draft.roots):
            guesses = self._guesses.get(step.view.slots[row])
            if root >= 0 and guesses is not None:
                self._observe(step, row, root, guesses)

    def _observe(self, step: Step, row: int, root: int, guesses: list[list[int]]) -> None:
        draft, history = step.draft, step.view.histories[row]
        nodes = range(int(draft.offsets[row + 1]) - 1, root, -1)  # so that of equal siblings the first counts
        children = {(int(draft.parents[node]), int(draft.tokens[node])): node for node in nodes}
        kept = [*draft.tokens[step.verdict.paths[row]].tolist(), step.verdict.next_tokens[row]]
        for gram in self._pool.after(history[-1]):
            if (root, gram[0]) in children:
                self._tried += 1
                self._right += gram[0] == kept[0]
        ends = []
        for branch in _branches(guesses):
            node = root
            for token in branch:
                node = children.get((node, token), -1)
            if node < 0:
                break
            ends.append(node)
        full = len(guesses) == self._levels and bool(ends)
        if ends:
            logits = np.asarray(step.scores.logits[np.searchsorted(draft.scored, ends)])
            made = logits.argmax(axis=1).tolist()
            if full:
                for first, *rest in zip(*guesses, made, strict=False):
                    self._pool.add(first, tuple(rest))
            guesses = [*guesses[full:], made]
        # A level later in the same column is a place later in the text; and the text grew.
        gone = len(kept) - full
        text = [*history[-self._window :], *kept]
        self._guesses[step.view.slots[row]] = [self._fill(level[gone:], text) for level in guesses]

    def release(self, slots: Sequence[int]) -> None:
        """Forget the guesses of these sequences; the pool stays."""
        for slot in slots:
            self._guesses.pop(slot, None)


def _branches(guesses: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """For each column the path from the root: the first level up to the column, then its later levels."""
    for column in range(len(guesses[0])):
        yield [*guesses[0][: column + 1], *(level[column] for level in guesses[1:])]


def build(info: TargetInfo, *, window: int = 3, levels: int = 3, grams: int = 2) -> Lookahead:
    """Lookahead decoding.

    window  places in front of the text that are guessed at once, at least 1
    levels  levels of guesses, at least 1: the pool's n-grams have a token more
    grams   n-grams kept for each first token, and drafted, at least 1

    The window takes window * levels nodes and the n-grams up to grams * levels; an engine whose budget
    (`nodes`) is smaller gets the n-grams and as much of the window as fits.

    Raises ConfigError for a value out of range.
    """
    for name, value in (("window", window), ("levels", levels), ("grams", grams)):
        if value < 1:
            raise ConfigError(f"lookahead:{name} must be at least 1, got {value}")
    return Lookahead(window, levels, grams)
