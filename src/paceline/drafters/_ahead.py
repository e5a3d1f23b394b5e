"""Drafting while the target verifies.

When a draft is handed over, a thread goes on: for the likeliest outcomes of the target's pass - all drafted
tokens accepted and some next one, or a draft refused somewhere and another token in its place - it makes the
draft that would be asked for next. Nothing of that is proposed. What is kept are the logits that the model
gave, by text; the next draft is made as always, and where the text came true it finds its logits ready.

So what is proposed does not depend on what was foreseen, nor when: a draft is still a function of the
committed text, the request's parameters and its noise, drawn once that text is there, and exact under every
rule for the reasons that it was before.

Sources: Liu et al., "PEARL", 2024 (arXiv 2408.11850), for drafting on during verification (post-verify) and
for verifying a first token alone during drafting (pre-verify); Shen et al., "SpecBranch", 2025 (arXiv
2506.01979), for branches at the tokens where a draft may fail. That only logits are kept is our own; the
engines of both propose what was drafted before the outcome was known.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import NamedTuple

import numpy as np

from paceline.core import Array, Budget, Step, Tree, View
from paceline.drafters._model import ModelDrafter, Path, Scorer
from paceline.drafting import Paths, foremost, warped


class Abandoned(Exception):
    """What was being foreseen has become useless."""


class Foresight:
    """A `Scorer` that remembers what another one said, until the text has gone another way.

    One thread uses it at a time. Histories may be longer than the one `follow` was told last: what is beyond
    it is a guess, and the other scorer sees it as drafted.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.abandoned = Event()
        self._scorer = scorer
        self._texts: dict[int, list[int]] = {}
        self._known: dict[int, dict[Path, Array]] = {}  # by what is behind the text

    def follow(self, slot: int, history: Sequence[int]) -> None:
        """This is the sequence's text now: what was foreseen for others is forgotten."""
        emitted = self.beyond(slot, history)
        known, count = self._known.get(slot, {}), len(emitted)
        self._known[slot] = {path[count:]: found for path, found in known.items() if path[:count] == emitted}
        self._texts[slot] = list(history)

    def beyond(self, slot: int, history: Sequence[int]) -> Path:
        """What of a history is behind the text that it follows."""
        return tuple(history[len(self._texts.get(slot, ())) :])

    def knows(self, slot: int) -> bool:
        """Whether what follows the text is known already."""
        return () in self._known[slot]

    def room(self, slot: int, history: Sequence[int], nodes: int) -> int:
        """As the other scorer has it."""
        guessed = len(self.beyond(slot, history))
        return max(0, self._scorer.room(slot, self._texts[slot], guessed + nodes) - guessed)

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits after each path; rows may share a slot. Raises Abandoned if that was asked for."""
        if self.abandoned.is_set():
            raise Abandoned
        wanted = [(slots[row], self.beyond(slots[row], histories[row]) + path) for row, path in paths]
        missing = [(slot, path) for slot, path in dict.fromkeys(wanted) if path not in self._known[slot]]
        if missing:
            rows = {slot: row for row, slot in enumerate(dict.fromkeys(slot for slot, _ in missing))}
            texts = [self._texts[slot] for slot in rows]
            found = self._scorer.score([*rows], texts, [(rows[slot], path) for slot, path in missing])
            for (slot, path), logits in zip(missing, found, strict=True):
                self._known[slot][path] = np.array(logits)
        return [self._known[slot][path] for slot, path in wanted]

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        self._scorer.release(slots)
        for slot in slots:
            self._texts.pop(slot, None)
            self._known.pop(slot, None)


class End(NamedTuple):
    """Where the target may leave a tree.

    path         the tokens that it has accepted then
    probability  of that path, as the draft has it
    drafted      the tokens below, with which it would not leave the tree there
    expected     whether it is the likeliest leaf. A draft is accepted more often than its model is sure of
                 it: that it is accepted whole, and its own choice follows, is taken for the likeliest outcome
    """

    path: Path
    probability: float
    drafted: set[int]
    expected: bool


class Outcome(NamedTuple):
    """What a row's pass may emit, and how likely the draft makes it."""

    row: int
    emitted: Path
    probability: float


class Ahead:
    """A `ModelDrafter` whose next draft is made while the target verifies the last one.

    outcomes  for so many outcomes of each request's pass the next draft is made
    wait      whether a request whose text was not foreseen waits for its draft; otherwise, under a rule that
              compares tokens, its next token is verified alone while the draft is made

    Requests whose controls change logits (penalties, biases, grammars) have their drafts made when they are
    asked for: what these remember belongs to the engine's thread.
    """

    def __init__(self, drafter: ModelDrafter, foresight: Foresight, outcomes: int, wait: bool) -> None:
        self.needs, self.drawn, self.branches = drafter.needs, drafter.drawn, drafter.branches
        self.whole = drafter.whole
        self._drafter = drafter
        self._foresight = foresight
        self._outcomes = outcomes
        self._wait = wait
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="paceline-ahead")
        self._work: Future[None] | None = None
        self._foreseen: set[tuple[int, Path]] = set()  # slot, what its pass may emit

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """What the drafter proposes. Raises what went wrong in the thread."""
        self._settle(view)
        for slot, history in zip(view.slots, view.histories, strict=True):
            self._foresight.follow(slot, history)
        rows = [
            row
            for row, budget in enumerate(budgets)
            if min(budget) > 0 and view.draws(row) and not view.controls[row].adjusts
        ]
        now = list(budgets)
        if view.coupled and not self._wait:
            for row in rows:
                if not self._foresight.knows(view.slots[row]):
                    now[row] = Budget(0, 0)
        trees = self._drafter.propose(view, now)
        if rows:
            frozen = replace(view.rows(rows), histories=[list(view.histories[row]) for row in rows])
            given = [trees[row] for row in rows], [budgets[row] for row in rows]
            self._work = self._thread.submit(self._foresee, frozen, *given)
        return trees

    def _settle(self, view: View | None = None) -> None:
        """Wait for the thread: until it is done, or where its work serves no row, until its pass is."""
        work, self._work = self._work, None
        if work is None:
            return
        beyond, foreseen = self._foresight.beyond, self._foreseen
        if view is None or not any(
            (slot, beyond(slot, history)) in foreseen
            for slot, history in zip(view.slots, view.histories, strict=True)
        ):
            self._foresight.abandoned.set()
        try:
            work.result()
        except Abandoned:
            pass
        finally:
            self._foresight.abandoned.clear()
            self._foreseen = set()

    def _foresee(self, view: View, trees: Sequence[Tree], budgets: Sequence[Budget]) -> None:
        """Make the drafts that may be asked for next, so that their logits are known."""
        outcomes = self._likeliest(view, trees, budgets)
        self._foreseen = {(view.slots[row], emitted) for row, emitted, _ in outcomes}
        texts = [[*view.histories[row], *emitted] for row, emitted, _ in outcomes]
        ends = [len(text) for text in texts]
        then = replace(
            view.rows([outcome.row for outcome in outcomes]),
            histories=texts,
            starts=[end - 1 for end in ends],
            ends=ends,
        )
        left = [
            Budget(budgets[row].nodes, max(0, budgets[row].depth - len(emitted)))
            for row, emitted, _ in outcomes
        ]
        self._drafter.propose(then, left)

    def _likeliest(self, view: View, trees: Sequence[Tree], budgets: Sequence[Budget]) -> list[Outcome]:
        """The likeliest outcomes of every row that there is room for."""
        ends = [
            (row, end)
            for row, (tree, budget) in enumerate(zip(trees, budgets, strict=True))
            if self._room(view, row, len(tree.tokens) + self._outcomes * (1 + budget.nodes))
            for end in _ends(tree)
            if not view.controls[row].ending.intersection(end.path)
        ]
        if not ends:
            return []
        paths = [(row, end.path) for row, end in ends]
        found = self._foresight.score(view.slots, view.histories, paths)
        outcomes: list[list[Outcome]] = [[] for _ in trees]
        for (row, end), logits in zip(ends, found, strict=True):
            weights = warped(view, row, end.path, logits)
            law, count = weights / (weights.sum() or 1.0), self._outcomes + len(end.drafted)
            if view.coupled:
                ranked = foremost(view, row, len(end.path), law, count)
            else:
                ranked = np.argsort(-law, kind="stable")[:count].tolist()
            next_ones = [token for token in ranked if token not in end.drafted]
            for rank, token in enumerate(next_ones):
                if token not in view.controls[row].ending:
                    sure = end.expected and not rank
                    probability = 1.0 if sure else end.probability * float(law[token])
                    outcomes[row].append(Outcome(row, (*end.path, token), probability))
        for own in outcomes:
            own.sort(key=lambda outcome: -outcome.probability)
        return [outcome for own in outcomes for outcome in own[: self._outcomes]]

    def _room(self, view: View, row: int, nodes: int) -> bool:
        return self._foresight.room(view.slots[row], view.histories[row], nodes) > 0

    def observe(self, step: Step) -> None:
        """The histories say all there is to know."""

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences. Raises what went wrong in the thread."""
        try:
            self._settle()
        finally:
            self._drafter.release(slots)


def _ends(tree: Tree) -> list[End]:
    reached: dict[Path, float] = {(): 1.0}
    drafted: dict[Path, set[int]] = {(): set()}
    paths: list[Path] = []
    for token, parent, confidence in zip(tree.tokens, tree.parents, tree.confidences, strict=True):
        above = paths[parent] if parent >= 0 else ()
        path = (*above, token)
        paths.append(path)
        reached[path] = reached[above] * confidence
        drafted[above].add(token)
        drafted.setdefault(path, set())
    expected: Path = ()
    while drafted[expected]:
        expected = max(((*expected, token) for token in drafted[expected]), key=reached.__getitem__)
    return [End(path, reached[path], below, path == expected) for path, below in drafted.items()]
