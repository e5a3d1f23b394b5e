"""The process that listens: where, for whom, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from paceline.errors import ConfigError
from paceline.serve import logs
from paceline.serve.app import routes
from paceline.serve.failures import ApiError, shutting_down, too_large
from paceline.serve.fleet import Fleet
from paceline.serve.guard import MAX_HEADER_BYTES, Guard
from paceline.serve.metrics import Metrics
from paceline.serve.server import Server
from paceline.serve.settings import ModelSettings

if TYPE_CHECKING:
    from paceline.serve.telemetry import Telemetry

BACKLOG = 2048
UNREAD_HEADER_BYTES = 4 * MAX_HEADER_BYTES
"""Above what the guard allows, so that it is mostly the guard who refuses."""
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a server listens, and for whom.

    socket         path of a unix socket, instead of host and port
    keys           API keys; without any, everybody who can connect is served
    insecure       whether a server without keys may listen beyond this machine
    strict         whether unknown parameters are refused
    drain_s        seconds that answers in work have when the server is told to end
    metric_prefix  of the names in /metrics
    otlp_endpoint  address of a collector of OpenTelemetry; None: nothing is sent
    """

    host: str = "127.0.0.1"
    port: int = 8000
    socket: Path | None = None
    keys: Sequence[str] = ()
    insecure: bool = False
    strict: bool = False
    drain_s: float = 30.0
    metric_prefix: str = "paceline:"
    otlp_endpoint: str | None = None
    log_level: str = "info"


def serve(
    models: Mapping[str, ModelSettings],
    memory: int | None,
    listening: Listening,
    note: Callable[[str], None],
) -> int:
    """Serve until told to end; the exit code: 0 after SIGTERM or Ctrl-C, 130 after a second one.

    note: shows a line to the user. Raises ConfigError, and ModelFileError for a model that cannot be loaded
    at the start.
    """
    if not 0 <= listening.drain_s <= 3600:
        raise ConfigError(f"--drain-timeout must be 0 to 3600 seconds, got {listening.drain_s:g}")
    with bound(listening) as (connection, address):
        logs.set_up(listening.log_level)
        return asyncio.run(_Program(models, memory, listening, connection, note).run(address))


@contextmanager
def bound(listening: Listening) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, and its address for people. Raises ConfigError."""
    if listening.socket is not None:
        with _unix_socket(listening.socket) as connection:
            yield connection, f"unix socket {listening.socket}"
        return
    if not (listening.keys or listening.insecure or _local(listening.host)):
        raise ConfigError(
            f"--host {listening.host} lets other machines in: set API keys (--api-key-file, or the variable "
            "PACELINE_API_KEYS), or allow it with --insecure"
        )
    if not 0 <= listening.port <= 65535:
        raise ConfigError(f"--port must be 0 to 65535, got {listening.port}")
    family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
    try:
        connection = socket.create_server((listening.host, listening.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {listening.host}:{listening.port}: {error.strerror or error}; "
            "choose another --port or --host"
        ) from None
    with connection:
        host = f"[{listening.host}]" if ":" in listening.host else listening.host
        yield connection, f"http://{host}:{connection.getsockname()[1]}"


def _local(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return False


@contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    """A socket that only this user can connect to. One that a killed server left behind is replaced."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise ConfigError(f"--socket {path}: is there and no socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
                    raise ConfigError(f"--socket {path}: another server listens there")
            path.unlink()
        before = os.umask(0o177)
        try:
            connection.bind(str(path))
        finally:
            os.umask(before)
        connection.listen(BACKLOG)
    except OSError as error:
        connection.close()
        raise ConfigError(f"--socket {path}: {error.strerror or error}") from None
    with connection:
        try:
            yield connection
        finally:
            path.unlink(missing_ok=True)


class _Protocol(H11Protocol):
    """HTTP/1.1 by h11, whose limits on unread headers are firm; what is no HTTP is refused in our form."""

    def send_400_response(self, msg: str) -> None:
        """What uvicorn does with what is no HTTP, and with headers that do not end."""
        error = ApiError("the request is not HTTP/1.1", code="invalid_http")
        if len(self.conn.trailing_data[0]) > UNREAD_HEADER_BYTES:
            error = too_large(f"more than {UNREAD_HEADER_BYTES} bytes of headers", status=431)
        body = msgspec.json.encode(error.body())
        self.transport.write(
            b"HTTP/1.1 %d \r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (error.status, len(body), body)
        )
        self.transport.close()


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


def _telemetry(endpoint: str | None) -> Telemetry | None:
    if endpoint is None:
        return None
    from paceline.serve.telemetry import Telemetry

    return Telemetry.sent_to(endpoint)


class _Program:
    """One run of a server."""

    def __init__(
        self,
        models: Mapping[str, ModelSettings],
        memory: int | None,
        listening: Listening,
        connection: socket.socket,
        note: Callable[[str], None],
    ) -> None:
        app = routes()
        guard = Guard(app, listening.keys)
        self._fleet = Fleet(models, memory)
        self._server = Server(
            self._fleet,
            Metrics(listening.metric_prefix),
            guard,
            strict=listening.strict,
            telemetry=_telemetry(listening.otlp_endpoint),
        )
        app.state.server = self._server
        self._http = _Uvicorn(
            uvicorn.Config(
                guard,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=UNREAD_HEADER_BYTES,
            )
        )
        self._connection = connection
        self._drain_s = listening.drain_s
        self._note = note
        self._told = asyncio.Event()
        self._hurried = asyncio.Event()

    async def run(self, address: str) -> int:
        """Serve; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        http = asyncio.create_task(self._http.serve([self._connection]))
        loading = asyncio.create_task(self._fleet.start())
        told = asyncio.create_task(self._told.wait())
        self._note(f"listening on {address}, loading {', '.join(self._fleet.names)}")
        try:
            await asyncio.wait((loading, told, http), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self._note(f"ready: {address}/v1" if "://" in address else f"ready: {address}")
                await asyncio.wait((told, http), return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            loading.cancel()
            told.cancel()
            self._http.should_exit = True
            await self._fleet.stop()
            await asyncio.wait((http, loading, told))
            if self._server.telemetry is not None:
                await asyncio.to_thread(self._server.telemetry.close)
        return INTERRUPTED if self._hurried.is_set() else 0

    def _signalled(self) -> None:
        if self._told.is_set():
            self._hurried.set()
        self._told.set()

    async def _drain(self) -> None:
        """Take no new requests, and let those in work finish, for a while."""
        self._server.draining = True
        if self._server.active:
            self._note(
                f"ending: {self._server.active} requests have {self._drain_s:g} s to finish; "
                "once more ends them now"
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while self._server.active and not self._hurried.is_set():
                    await asyncio.sleep(0.02)
        if self._server.active:
            self._fleet.fail_all(shutting_down())
            deadline = asyncio.get_running_loop().time() + 1
            while self._server.active and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.02)
