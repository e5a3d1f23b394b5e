"""Server-sent events to a client that may go away or read slowly at any time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from paceline.serve.failures import ApiError

WRITE_TIMEOUT_S = 60.0
PATROL_S = 5.0
"""How often it is looked whether a client takes anything: a timer for every piece would cost more than the
piece."""
CLIENT_GONE = 499
"""The status that is noted where nobody was there to get one."""

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection, or took nothing for WRITE_TIMEOUT_S."""


class EventStream(Response):
    """The records of a generator, each as one event.

    An ApiError on the way becomes an event of its own, since the status is sent by then, and the stream ends
    in order.

    named   whether an event has a name, its record's "type", and nothing stands behind the last one; else
            that is "[DONE]"
    on_end  called once, with the status to note, however the stream ends
    """

    def __init__(
        self,
        records: AsyncGenerator[dict[str, Any], None],
        *,
        headers: Mapping[str, str],
        named: bool,
        on_end: Callable[[int], None],
    ) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache", **headers}, "text/event-stream")
        del self.headers["content-length"]
        self._records = records
        self._named = named
        self._on_end = on_end
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        status = 500
        try:
            status = await while_connected(receive, self._write(send), self._stuck)
        except ClientGone:
            status = CLIENT_GONE
        finally:
            self._on_end(status)

    async def _write(self, send: Send) -> int:
        status = 200
        await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})
        async with contextlib.aclosing(self._records) as records:
            try:
                async for record in records:
                    await self._send(send, self._event(record))
            except ApiError as error:
                status = error.status
                await self._send(send, self._event({"type": "error", **error.body()}))
        await self._send(send, b"" if self._named else b"data: [DONE]\n\n", more=False)
        return status

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        self._sending_since = time.monotonic()
        try:
            await send({"type": "http.response.body", "body": data, "more_body": more})
        except OSError:
            raise ClientGone from None
        self._sending_since = None

    def _stuck(self) -> bool:
        since = self._sending_since
        return since is not None and time.monotonic() - since > WRITE_TIMEOUT_S

    def _event(self, record: Mapping[str, Any]) -> bytes:
        name = f"event: {record['type']}\n".encode() if self._named else b""
        return name + b"data: " + msgspec.json.encode(record) + b"\n\n"


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], stuck: Callable[[], bool] = lambda: False
) -> T:
    """The result of some work, which is cancelled when the client goes away or is found to be stuck: then
    raises ClientGone.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        while not (task.done() or gone.done() or stuck()):
            await asyncio.wait((task, gone), timeout=PATROL_S, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait((task, gone))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
