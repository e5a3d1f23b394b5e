"""One engine process, supervised: started, watched, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import socket
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

from paceline.errors import ModelFileError
from paceline.models.tokenizer import Tokenizer
from paceline.results import Load
from paceline.serve import wire
from paceline.serve.channel import Channel
from paceline.serve.failures import ApiError, internal, queue_full, refused, unavailable

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.2
LAST_DELAY_S = 5.0
LONG_LIFE_S = 60.0
"""An engine that lived so long did not die of starting."""
STALL_S = 60.0
"""An engine that has requests and says nothing for so long is hanging: no pass takes that long. It is counted
in two halves: where all of us were stopped for a while, the engine has the second to be heard again."""
FAREWELL_S = 3.0
IDLE = Load(0, 0, 0, 0, 0, 0, 0, {}, frozenset())
READ_BYTES = 1 << 16


class Model(NamedTuple):
    """A model that is loaded: what its engine said of it, and its tokenizer, for use in this process."""

    info: wire.Ready
    tokenizer: Tokenizer


State = Literal["starting", "ready", "restarting", "stopped"]


class Backend:
    """An engine process, and the requests that it has.

    build     what the engine is built of
    capacity  requests that may run and wait at the same time
    state     "starting" until the model is loaded for the first time, "restarting" while an engine that
              died is replaced
    model     None while it is not loaded
    load      what the engine last said of itself
    restarts  engines that died

    Belongs to one event loop. Requests of a process that died end with an error; the next process starts
    with none.
    """

    def __init__(self, build: wire.Build, *, capacity: int) -> None:
        self.build = build
        self.capacity = capacity
        self.state: State = "starting"
        self.model: Model | None = None
        self.load = IDLE
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ids = itertools.count()
        self._channels: dict[int, tuple[Channel, int] | None] = {}  # None: nobody listens any more
        self._verdicts: dict[int, asyncio.Future[ApiError | None]] = {}
        self._began: dict[int, float] = {}
        self._seconds = 1.0  # how long a request takes, of late
        self._loaded = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return len(self._channels)

    async def run(self) -> None:
        """Keep an engine process alive until cancelled. Raises ModelFileError if the model cannot be loaded
        at the first start; later starts are tried again and again."""
        delay = FIRST_DELAY_S
        clock = asyncio.get_running_loop().time
        try:
            while True:
                began = clock()
                reason = await self._live()
                log.error("the engine ended: %s", reason, extra={"model": self.build.model})
                self.restarts += 1
                self.state = "restarting"
                delay = FIRST_DELAY_S if clock() - began > LONG_LIFE_S else min(2 * delay, LAST_DELAY_S)
                await asyncio.sleep(delay)
        finally:
            self.state = "stopped"

    async def loaded(self) -> None:
        """Wait until the model is loaded."""
        await self._loaded.wait()

    async def _live(self) -> str:
        """The life of one engine process; why it ended."""
        ours, its = socket.socketpair()
        with its:
            # -P: a file in the current folder is never taken for a module.
            self.process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "paceline.serve.worker", str(its.fileno())),
                pass_fds=[its.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        log.info("engine started", extra={"model": self.build.model, "pid": process.pid})
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        reason = "its connection was closed"
        try:
            self._send(self.build)
            reason = await self._listen(reader) or reason
        except TimeoutError:
            reason = f"it said nothing for {STALL_S:.0f} s"
        except OSError as error:
            reason = str(error)
        finally:
            self.model = None
            self.load = IDLE
            self._loaded.clear()
            self._engine_gone()
            await self._end(process)
        return f"{reason} (exit status {process.returncode})"

    async def _listen(self, reader: asyncio.StreamReader) -> str | None:
        splitter = wire.Splitter()
        silent = 0
        while True:
            try:
                async with asyncio.timeout(STALL_S / 2):
                    data = await reader.read(READ_BYTES)
            except TimeoutError:
                silent += 1
                if silent >= 2 and self._waits_since(asyncio.get_running_loop().time() - STALL_S):
                    raise
                continue
            silent = 0
            if not data:
                return None
            for frame in splitter.push(data):
                report = wire.report_decoder.decode(frame)
                if isinstance(report, wire.Failed):
                    if self.state == "starting":
                        raise ModelFileError(report.message)
                    return report.message
                self._take(report)

    def _waits_since(self, time: float) -> bool:
        """Whether the engine has had a request from before this time on."""
        return any(began < time for began in self._began.values())

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Close the connection, which ends the process, by force if it does not hear."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()
        try:
            async with asyncio.timeout(FAREWELL_S):
                await process.wait()
        except (TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _send(self, frame: wire.Build | wire.Order) -> None:
        if self._writer is not None:
            self._writer.write(wire.pack(frame))

    def check_room(self, count: int) -> None:
        """Raises ApiError: 503 if the engine is not there, 429 if it has no room for so many requests."""
        if self.model is None:
            raise self.down()
        if self.in_flight + count > self.capacity:
            raise queue_full(self.in_flight, self._patience())

    async def submit(self, orders: Sequence[wire.Submit], channel: Channel) -> list[int]:
        """Give the engine the requests of one HTTP request; their numbers, in order.

        Events go to `channel`, with the request's place in `orders`. An order's own id does not count.
        Raises ApiError: 429 at once if there is no room, 503 if the engine is not there, 400 for what the
        engine refuses; then none of the requests is left behind.
        """
        self.check_room(len(orders))
        ids = [next(self._ids) for _ in orders]
        loop = asyncio.get_running_loop()
        for place, (id, order) in enumerate(zip(ids, orders, strict=True)):
            self._channels[id] = (channel, place)
            self._verdicts[id] = loop.create_future()
            self._began[id] = loop.time()
            self._send(wire.Submit(id, *(getattr(order, name) for name in wire.Submit.__struct_fields__[1:])))
        try:
            verdicts = await asyncio.gather(*(self._verdicts[id] for id in ids))
        except asyncio.CancelledError:
            self.cancel(ids)
            raise
        finally:
            for id in ids:
                self._verdicts.pop(id, None)
        for verdict in verdicts:
            if verdict is not None:
                self.cancel(ids)
                raise verdict
        return ids

    def cancel(self, ids: Sequence[int]) -> None:
        """End requests that nobody waits for any more. Those that have ended are no error."""
        for id in ids:
            if self._channels.get(id) is not None:
                self._channels[id] = None
                self._send(wire.Cancel(id))

    def _take(self, report: wire.Report) -> None:
        match report:
            case wire.Answered(id, event):
                self._pass_on(id, report)
                if event.finish is not None:
                    self._forget(id)
            case wire.Busy(load):
                self.load = load
            case wire.Accepted(id):
                self._settle(id, None)
            case wire.Refused(id, message, kind):
                self._forget(id)
                self._settle(id, self._refusal(message, kind))
            case wire.Ready():
                self.model = Model(report, Tokenizer.from_json(report.tokenizer))
                self.state = "ready"
                self._loaded.set()

    def _pass_on(self, id: int, report: wire.Answered) -> None:
        heard = self._channels.get(id)
        if heard is None:
            return
        channel, place = heard
        channel.put(place, report.event)
        if channel.overflowed and report.event.finish is None:
            channel.fail(ApiError("you read too slowly, the answer was cut", status=499, code="slow_client"))
            self.cancel([id])

    def _forget(self, id: int) -> None:
        self._channels.pop(id, None)
        began = self._began.pop(id, None)
        if began is not None:
            self._seconds += 0.1 * (asyncio.get_running_loop().time() - began - self._seconds)

    def _settle(self, id: int, verdict: ApiError | None) -> None:
        future = self._verdicts.get(id)
        if future is not None and not future.done():
            future.set_result(verdict)

    def _engine_gone(self) -> None:
        for id in list(self._verdicts):
            self._settle(id, self.down())
        error = internal("the engine ended while it worked on this; it is being started again")
        del error.headers["x-should-retry"]  # this one is worth another try
        self.fail_all(error)
        self._channels.clear()
        self._began.clear()

    def fail_all(self, error: ApiError) -> None:
        """End what the engine has in work with an error."""
        for id, heard in list(self._channels.items()):
            if heard is not None:
                heard[0].fail(error)
                self.cancel([id])

    def _refusal(self, message: str, kind: str) -> ApiError:
        if kind == "full":
            return queue_full(self.in_flight, self._patience())
        return refused(message, None, "context_length_exceeded" if kind == "capacity" else "invalid_value")

    def down(self) -> ApiError:
        """503: why the engine cannot be asked now."""
        words = "is being loaded" if self.state == "starting" else "ended and is being started again"
        return unavailable(f"the engine {words}", "engine_unavailable")

    def _patience(self) -> int:
        """Seconds after which there is likely room again."""
        rounds = max(1, self.in_flight) / self.build.max_batch
        return max(1, min(60, math.ceil(self._seconds * rounds)))
