"""From an answer's tokens to its text, with stop strings found and cut out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class Detokenizer(Protocol):
    """Turns the tokens of one answer into text, piece by piece."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens make final."""
        ...

    def finish(self) -> str:
        """The text still held back when the answer ends."""
        ...


class Tokenizer(Protocol):
    """What the engine asks of a tokenizer."""

    vocab_size: int
    eos_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def encode_part(self, text: str) -> list[int]:
        """The ids of a text inside another: no start token before it, and no space of the tokenizer's own."""
        ...

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for, not necessarily whole characters; none for a control token."""
        ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...

    def detokenizer(self) -> Detokenizer: ...


class Heard(NamedTuple):
    """What a transcript made of some tokens.

    text: safe to show; used: tokens read until a stop string was complete, else all; stop: that string.
    """

    text: str
    used: int
    stop: str | None


class Transcript:
    """The text of one answer. Text that may turn out to begin a stop string is held back.

    A stop string counts as soon as its last character stands, as if characters came one by one, so that
    the result does not depend on how many tokens a step brings. One that is complete before `min_tokens`
    tokens does not count. Without a detokenizer all text is empty.
    """

    def __init__(self, detokenizer: Detokenizer | None, stops: Sequence[str], min_tokens: int) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._min_tokens = min_tokens
        self._read = 0
        self._held = ""
        self._shown: list[str] = []

    @property
    def text(self) -> str:
        """All text shown so far."""
        return "".join(self._shown)

    def push(self, tokens: Sequence[int]) -> Heard:
        """Read tokens of the answer, up to the first complete stop string."""
        if self._detokenizer is None:
            return Heard("", len(tokens), None)
        if not self._stops:
            return Heard(self._show(self._detokenizer.push(tokens)), len(tokens), None)
        texts = []
        for used, token in enumerate(tokens, 1):
            self._read += 1
            text, stop = self._filter(self._detokenizer.push((token,)))
            texts.append(text)
            if stop is not None:
                return Heard("".join(texts), used, stop)
        return Heard("".join(texts), len(tokens), None)

    def finish(self) -> Heard:
        """The answer ended otherwise: give out what was held back, unless it completes a stop string."""
        if self._detokenizer is None:
            return Heard("", 0, None)
        text, stop = self._filter(self._detokenizer.finish())
        if stop is None:
            text += self._show(self._held)
        return Heard(text, 0, stop)

    def _filter(self, text: str) -> tuple[str, str | None]:
        """Text that can be shown now, and the stop string that the new text completed first."""
        held, text = len(self._held), self._held + text
        if self._read >= self._min_tokens and (found := self._first_stop(text, held)):
            start, stop = found
            return self._show(text[:start]), stop
        keep = self._may_begin_stop(text)
        self._held = text[len(text) - keep :]
        return self._show(text[: len(text) - keep]), None

    def _first_stop(self, text: str, held: int) -> tuple[int, str] | None:
        """Start of the stop string that ends first (of those, the longest) behind `held` characters."""
        found = []
        for stop in self._stops:
            start = text.find(stop, max(0, held - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start, stop))
        return min(found)[1:] if found else None

    def _may_begin_stop(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops if len(stop) > length):
                return length
        return 0

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text
