"""What one HTTP response has yet to say: a bounded queue between its engine and its client."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from paceline.results import Event, TokenLogprobs
from paceline.serve.failures import ApiError

MAX_BYTES = 1 << 16
"""What a streaming client may leave unread here, beside what the operating system and HTTP hold."""


class Channel:
    """The events of all answers in one HTTP response, in order for each answer.

    A client that reads slowly finds the pieces joined: there is never more than one piece per answer, and
    what it can grow to is bounded by the length of an answer, or, where `bounded`, by MAX_BYTES. Belongs to
    one event loop.
    """

    def __init__(self, *, bounded: bool) -> None:
        self._bounded = bounded
        self._pending: dict[int, Event] = {}
        self._bytes = 0
        self._error: ApiError | None = None
        self._news = asyncio.Event()

    @property
    def overflowed(self) -> bool:
        """Whether more is left unread than may be."""
        return self._bounded and self._bytes > MAX_BYTES

    def put(self, index: int, event: Event) -> None:
        """Add an event of the answer with this index. Never waits."""
        before = self._pending.get(index)
        self._pending[index] = event if before is None else _joined(before, event)
        self._bytes += _size(event)
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """Say that nothing more will come; what is there is still handed out."""
        self._error = self._error or error
        self._news.set()

    async def get(self) -> list[tuple[int, Event]]:
        """All that is new, at least one event. Raises the ApiError of `fail` once all is handed out."""
        await self._news.wait()
        if not self._pending:
            assert self._error is not None, "news are events or an error"
            raise self._error
        events = sorted(self._pending.items())
        self._pending.clear()
        self._bytes = 0
        if self._error is None:
            self._news.clear()
        return events


def _joined(first: Event, second: Event) -> Event:
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=_both(first.logprobs, second.logprobs),
    )


def _both(
    first: tuple[TokenLogprobs, ...] | None, second: tuple[TokenLogprobs, ...] | None
) -> tuple[TokenLogprobs, ...] | None:
    return second if first is None else first + (second or ())


def _size(event: Event) -> int:
    """Bytes that an event will roughly be on the wire."""
    logprobs = event.logprobs or ()
    return len(event.text) + 8 * len(event.token_ids) + 64 * sum(1 + len(one.top) for one in logprobs)
