"""What all routes share, and how they read a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import Request

from paceline.serve.failures import refused
from paceline.serve.fleet import Fleet
from paceline.serve.guard import Guard, body_of
from paceline.serve.metrics import Metrics
from paceline.serve.reading import read

if TYPE_CHECKING:
    from paceline.serve.telemetry import Telemetry

LARGE = 1 << 14
"""Bodies of so many bytes are read on another thread, so that streams go on meanwhile."""

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")


class Server:
    """The state of a server.

    fleet     the models
    guard     who may come in
    strict    whether unknown parameters are refused
    draining  whether new requests are
    active    requests for answers that are being served
    telemetry  where it is told to, beside the metrics
    """

    def __init__(
        self,
        fleet: Fleet,
        metrics: Metrics,
        guard: Guard,
        *,
        strict: bool,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.fleet = fleet
        self.metrics = metrics
        self.telemetry = telemetry
        self.guard = guard
        self.strict = strict
        self.draining = False
        self.active = 0
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="reading")

    async def aside(self, work: Callable[..., T], *arguments: Any, timeout: float | None = None) -> T:
        """Do what takes long on another thread. Raises ApiError after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                return await loop.run_in_executor(self._threads, work, *arguments)
        except TimeoutError:
            raise refused(
                f"the schema takes longer than {timeout} s to read", "response_format", "invalid_json_schema"
            ) from None

    async def read(self, request: Request, kind: type[R]) -> tuple[R, dict[str, str]]:
        """The record in a request's body, and a header that names its unknown parameters. Raises ApiError."""
        body = await body_of(request)

        def reading() -> tuple[R, list[str]]:
            return read(body, kind, strict=self.strict)

        record, unknown = reading() if len(body) < LARGE else await self.aside(reading)
        return record, _warning(unknown)


def _warning(unknown: Sequence[str]) -> dict[str, str]:
    if not unknown:
        return {}
    names = ", ".join(ascii(name[:40])[1:-1] for name in unknown[:10]).replace("\\", "").replace('"', "")
    return {"Warning": f'299 paceline "unknown parameters were overlooked: {names}"'}
