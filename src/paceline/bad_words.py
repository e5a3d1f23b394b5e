"""Words that an answer must not hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from paceline.errors import ConfigError


class Cutter(Protocol):
    """What bad words ask of a tokenizer."""

    def encode_part(self, text: str) -> list[int]: ...


def spell(words: Iterable[str | Sequence[int]], tokenizer: Cutter | None) -> tuple[tuple[int, ...], ...]:
    """The words as token sequences: text as the tokenizer cuts it, with and without a space before it.

    Other spellings of the same text, which a model rarely writes, are not among them. Raises ConfigError
    for text without a tokenizer.
    """
    spellings: dict[tuple[int, ...], None] = {}
    for word in words:
        if not isinstance(word, str):
            spellings[tuple(word)] = None
        elif tokenizer is None:
            raise ConfigError("bad_words as text need a tokenizer, this engine has none; give token ids")
        else:
            spellings |= dict.fromkeys(tuple(tokenizer.encode_part(text)) for text in (word, f" {word}"))
    return tuple(filter(None, spellings))


class BadWords:
    """Which tokens would complete a bad word of the answer, as it grows. Words that began in the prompt do
    not count."""

    __slots__ = ("_alone", "_longer", "_reach", "_tail")

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._alone = [word[0] for word in words if len(word) == 1]
        self._longer: dict[int, list[tuple[list[int], int]]] = {}  # by the last token but one
        for *begin, last in words:
            if begin:
                self._longer.setdefault(begin[-1], []).append((begin, last))
        self._reach = max(map(len, words), default=1) - 1
        self._tail: list[int] = []

    def answered(self, tokens: Iterable[int]) -> None:
        """These tokens were added to the answer."""
        self._tail += tokens
        del self._tail[: max(0, len(self._tail) - self._reach)]

    def after(self, path: Sequence[int]) -> list[int]:
        """The tokens forbidden behind the answer and a path of drafted tokens."""
        tail = [*self._tail, *path]
        candidates = self._longer.get(tail[-1], ()) if tail else ()
        return self._alone + [last for begin, last in candidates if tail[-len(begin) :] == begin]
