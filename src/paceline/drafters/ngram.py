"""Prompt lookup: propose what followed the last few tokens when they last stood in prompt or answer.

Helps where an answer repeats its prompt: summaries, extraction, edits of code. The index is kept up to
date token by token, so a step never searches the history.
Source: Saxena, "Prompt lookup decoding", 2023 (github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core import NOTHING, Budget, Drawn, Step, TargetInfo, Tree, View
from paceline.errors import ConfigError
from paceline.lookups.reference import certainty


class Index:
    """Where each run of 1 to `longest` tokens last stood in one sequence, its end excepted."""

    __slots__ = ("_followers", "_longest", "_read")

    def __init__(self, longest: int) -> None:
        self._followers: dict[tuple[int, ...], int] = {}
        self._longest = longest
        self._read = 1  # every run that ends before this place is in the index

    def read(self, history: Sequence[int]) -> None:
        """Take in the tokens since the last call."""
        for place in range(self._read, len(history)):
            for length in range(1, min(self._longest, place) + 1):
                self._followers[tuple(history[place - length : place])] = place
        self._read = max(self._read, len(history))

    def follower(self, history: Sequence[int], shortest: int) -> tuple[int, int] | None:
        """(place behind it, its length) of the latest earlier occurrence of the history's end, of the longest
        run known."""
        for length in range(min(self._longest, len(history) - 1), shortest - 1, -1):
            place = self._followers.get(tuple(history[-length:]))
            if place is not None:
                return place, length
        return None


class Ngram:
    """Proposes one chain: the continuation of the latest earlier occurrence of the last tokens."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn = frozenset({Drawn.FIXED})
    branches = False

    def __init__(self, tokens: int, longest: int, shortest: int) -> None:
        self._tokens = tokens
        self._longest = longest
        self._shortest = shortest
        self._indexes: dict[int, Index] = {}

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A chain for each row whose last tokens stood there before."""
        return [
            self._propose(slot, history, min(self._tokens, *budget))
            for slot, history, budget in zip(view.slots, view.histories, budgets, strict=True)
        ]

    def _propose(self, slot: int, history: Sequence[int], tokens: int) -> Tree:
        index = self._indexes.get(slot)
        if index is None:
            index = self._indexes[slot] = Index(self._longest)
        index.read(history)
        found = index.follower(history, self._shortest) if tokens > 0 else None
        if found is None:
            return NOTHING
        place, matched = found
        chain = Tree.chain(history[place : place + tokens])
        return chain._replace(confidences=[certainty(matched + i) for i in range(len(chain.tokens))])

    def observe(self, step: Step) -> None:
        """The histories say all there is to know."""

    def release(self, slots: Sequence[int]) -> None:
        """Forget the indexes of these sequences."""
        for slot in slots:
            self._indexes.pop(slot, None)


def build(info: TargetInfo, *, tokens: int = 7, longest: int = 3, shortest: int = 2) -> Ngram:
    """Prompt lookup.

    tokens    drafted tokens at most
    longest   the longest run of last tokens to look for, at least 1
    shortest  the shortest run that is worth a draft, 1 to longest

    Raises ConfigError for a value out of range.
    """
    if tokens < 1:
        raise ConfigError(f"ngram:tokens must be at least 1, got {tokens}")
    if not 1 <= shortest <= longest:
        raise ConfigError(f"ngram:shortest must be from 1 to longest ({longest}), got {shortest}")
    return Ngram(tokens, longest, shortest)
