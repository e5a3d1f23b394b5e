"""Drafting with the target's own weights: passes that leave out layers, or most of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paceline.core import Array, Budget, Shortcut, Sketch, Step, Tree, View
from paceline.drafters._model import ModelDrafter, hang
from paceline.drafters._options import Growth
from paceline.drafting import Paths


class Choice(Protocol):
    """What is left out of a sketch, and what is learned about it."""

    def shortcut(self) -> tuple[Shortcut, int]:
        """How the next draft is made, and how deep it may be."""
        ...

    def learn(self, tried: int, accepted: int) -> None:
        """Of the drafted tokens so made so many came to be compared, and so many were accepted."""
        ...


class Fixed:
    """The same shortcut always."""

    def __init__(self, shortcut: Shortcut, depth: int) -> None:
        self._chosen = shortcut, depth

    def shortcut(self) -> tuple[Shortcut, int]:
        """The one there is."""
        return self._chosen

    def learn(self, tried: int, accepted: int) -> None:
        """There is nothing to choose."""


class Sketches:
    """A `Scorer` that reads the target's cache and has none of its own."""

    def __init__(self, sketch: Sketch) -> None:
        self._sketch = sketch
        self.shortcut = Shortcut()

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """The target has room for what it will be asked to score."""
        return nodes

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits [V] after each path, valid until the next pass of the target."""
        starts = {row: len(histories[row]) - 1 for row in sorted({row for row, _ in paths})}
        fresh = {row: (start, histories[row][start:]) for row, start in starts.items()}
        draft, places = hang(slots, fresh, paths, known=1)
        logits = self._sketch(draft, self.shortcut)
        return [logits[place] for place in places]

    def release(self, slots: Sequence[int]) -> None:
        """There is nothing to forget."""


class SelfDrafter(ModelDrafter):
    """Draws trees from sketches of the target, and learns which sketches are worth their time."""

    def __init__(self, sketch: Sketch, choice: Choice, growth: Growth) -> None:
        self._sketches = Sketches(sketch)
        self._choice = choice
        self._trees: dict[int, Tree] = {}
        super().__init__(self._sketches, growth)

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A drawn tree for each row that decodes."""
        self._sketches.shortcut, depth = self._choice.shortcut()
        trees = super().propose(view, [Budget(nodes, min(deep, depth)) for nodes, deep in budgets])
        self._trees = dict(zip(view.slots, trees, strict=True))
        return trees

    def observe(self, step: Step) -> None:
        """See how far the last draft agreed with what was emitted."""
        tried = accepted = 0
        for row, slot in enumerate(step.view.slots):
            tree = self._trees.pop(slot, None)
            if tree is not None and (token := step.verdict.next_tokens[row]) >= 0:
                path = step.verdict.paths[row]
                compared, agreed = _agreement(tree, [*step.draft.tokens[path].tolist(), token])
                tried += compared
                accepted += agreed
        if tried:
            self._choice.learn(tried, accepted)


def _agreement(tree: Tree, emitted: Sequence[int]) -> tuple[int, int]:
    """Levels of the tree that emitted tokens were compared with, and those that held them."""
    node = -1
    for level, token in enumerate(emitted):
        children = [child for child, parent in enumerate(tree.parents) if parent == node]
        if not children:
            return level, level
        found = [child for child in children if tree.tokens[child] == token]
        if not found:
            return level + 1, level
        node = found[0]
    return len(emitted), len(emitted)
