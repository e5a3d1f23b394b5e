"""Propose what followed the longest ends of the text so far, in this request or in earlier answers.

Every earlier place where the last token stands is compared backwards with the end of the text: the more
tokens match, the more weight its continuation gets. Continuations are merged into a tree that grows best
first, likeliest token next, and stops where the expected gain no longer pays for the wider pass.

With the option `store` the earlier answers outlast the program in a file.

Helps where answers repeat prompts, themselves or each other: summaries, edits, agents, code.
Sources: Oliaro et al., "SuffixDecoding", 2024 (arXiv 2411.04975) for the idea of one tree per request and
one for earlier outputs, scored by frequency; the confidence and the stopping rule are our own.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from paceline.core import NOTHING, Budget, Drawn, Step, TargetInfo, Tree, View
from paceline.errors import ConfigError
from paceline.lookups import Continuations, Text
from paceline.lookups.best_first import MIN_PROBABILITY
from paceline.lookups.reference import BOUNDARY
from paceline.stores.answers import AnswersFile

LOOKED_AT = 32  # the latest occurrences that are compared, per text: bounds the time of a step
STORE_WEIGHT = 0.1  # weight of a place in earlier answers; one in the request itself weighs 1


class Store:
    """The latest answers, at most `limit` tokens. They are forgotten by halves: once the young half is
    full it becomes the old one, and what was old is gone."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self.texts = (Text(), Text())

    def add(self, answer: Sequence[int]) -> None:
        """Learn an answer; of one longer than half the store, the last part."""
        answer = answer[max(0, len(answer) + 1 - self._half) :]
        if not answer or self._half < 2:
            return
        if len(self.texts[0]) + len(answer) + 1 > self._half:
            self.texts = (Text(), self.texts[0])
        self.texts[0].extend([*answer, BOUNDARY])

    def answers(self) -> Iterator[list[int]]:
        """All answers in it, oldest first."""
        for text in reversed(self.texts):
            tokens, start = text.tokens, 0
            for place, token in enumerate(tokens):
                if token == BOUNDARY:
                    yield tokens[start:place]
                    start = place + 1


class Suffix:
    """Proposes a tree for every row, from the row's own text and the store of earlier answers."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn = frozenset({Drawn.FIXED})
    branches = True

    def __init__(
        self,
        max_nodes: int,
        min_probability: float,
        max_match: int,
        store: Store,
        file: AnswersFile | None = None,
    ) -> None:
        self._max_nodes = max_nodes
        self._min_probability = min_probability
        self._max_match = max_match
        self._store = store
        self._file = file
        if file is not None:
            for answer in file.read():
                store.add(answer)
            # There is no last call to a drafter: this is when it is forgotten, or the program ends.
            weakref.finalize(self, file.close)
        self._texts: dict[int, Text] = {}
        self._prompts: dict[int, int] = {}

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A tree for each row that decodes and ends like an earlier text."""
        trees = []
        for row, budget in enumerate(budgets):
            slot, history = view.slots[row], view.histories[row]
            text = self._texts.get(slot)
            if text is None:
                text = self._texts[slot] = Text()
                self._prompts[slot] = view.prompts[row]
            text.extend(history[len(text) :])
            trees.append(self._propose(text, history, budget) if min(budget) > 0 else NOTHING)
        return trees

    def _propose(self, text: Text, history: Sequence[int], budget: Budget) -> Tree:
        found = Continuations(history[: -self._max_match - 1 : -1])
        found.look_in(text, LOOKED_AT, 1.0)
        for earlier in self._store.texts:
            found.look_in(earlier, LOOKED_AT, STORE_WEIGHT)
        nodes = min(self._max_nodes, budget.nodes)
        tokens, parents, confidences = found.tree(nodes, budget.depth, self._min_probability)
        return Tree(tokens, parents, confidences=confidences)

    def observe(self, step: Step) -> None:
        """The histories say all there is to know."""

    def release(self, slots: Sequence[int]) -> None:
        """Move the answers of these sequences to the store and forget the rest."""
        for slot in slots:
            text = self._texts.pop(slot, None)
            if text is not None:
                self._store.add(text.tokens[self._prompts.pop(slot) :])
                if self._file is not None:
                    self._file.changed()


def build(
    info: TargetInfo,
    *,
    max_nodes: int = 7,
    min_probability: float = MIN_PROBABILITY,
    max_match: int = 12,
    store_tokens: int = 100_000,
    store: str = "",
) -> Suffix:
    """Suffix matching in the request and in earlier answers.

    max_nodes        drafted tokens per request and step at most
    min_probability  what the first drafted token's estimated probability must be; the i-th token needs
                     i times as much. A policy that knows what a token costs makes a better choice of
                     many: lower it then
    max_match        tokens compared at each earlier occurrence; longer matches count as this long
    store_tokens     tokens of earlier answers kept and shared by all requests of the engine; 0 for none
    store            a file to keep earlier answers in from one run to the next; made if it is not there

    Raises ConfigError for a value out of range, TokenFileError for a file that is something else or was made
    with another tokenizer. A damaged file is a warning, and made anew.
    """
    if max_nodes < 1:
        raise ConfigError(f"suffix:max_nodes must be at least 1, got {max_nodes}")
    if not 0 < min_probability <= 1:
        raise ConfigError(f"suffix:min_probability must be above 0, up to 1, got {min_probability}")
    if max_match < 1:
        raise ConfigError(f"suffix:max_match must be at least 1, got {max_match}")
    if store_tokens < 0:
        raise ConfigError(f"suffix:store_tokens must be 0 or more, got {store_tokens}")
    if store and not store_tokens:
        raise ConfigError("suffix:store keeps nothing with store_tokens=0; leave one of them out")
    earlier = Store(store_tokens)
    file = AnswersFile(Path(store), info, earlier.answers) if store else None
    return Suffix(max_nodes, min_probability, max_match, earlier, file)
