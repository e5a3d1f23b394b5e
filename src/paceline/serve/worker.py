"""The engine process: `python -m paceline.serve.worker FD`, started by `paceline.serve.backend`.

It reads orders from the socket FD between two steps of its engine, and ends when the socket does, so that it
never outlives its server. Signals that a terminal or a service manager sends to everybody are the server's
business.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import warnings
from dataclasses import replace

from paceline.core import Budget
from paceline.engine import Engine
from paceline.errors import CapacityError, PacelineError, QueueFull
from paceline.models.tokenizer import Tokenizer
from paceline.results import Event
from paceline.serve import stub, wire

READ_BYTES = 1 << 16


def main(fd: int) -> None:
    """Serve the socket until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.showwarning = lambda message, *_: print(f"paceline: note: {message}", file=sys.stderr)
    with socket.socket(fileno=fd) as connection:
        link = Link(connection)
        try:
            for frame in link.receive(wait=True):
                start(link, wire.build_decoder.decode(frame))
        except BrokenPipeError:
            pass  # the server went away in the middle of a report


def start(link: Link, build: wire.Build) -> None:
    """Load the model, say so, and work."""
    try:
        engine = build_engine(build)
    except PacelineError as error:
        link.send(wire.Failed(" ".join(str(error).split())))
        return
    except MemoryError:
        link.send(wire.Failed(f"{build.model}: out of memory; use a smaller model or a smaller context"))
        return
    info = engine.target.info
    tokenizer = engine.tokenizer
    assert isinstance(tokenizer, Tokenizer), "both kinds of models come with this one"
    link.send(
        wire.Ready(
            name=info.name,
            vocab_size=info.vocab_size,
            max_positions=info.max_positions,
            cache_tokens=info.cache_tokens,
            drafters=tuple(engine.drafters),
            rule=engine.rule.name,
            promise=info.keeps(engine.rule.promise).value,
            tokenizer=tokenizer.to_json(),
        )
    )
    Worker(link, engine).run()


def build_engine(build: wire.Build) -> Engine:
    """The engine that a server asks for. Raises PacelineError."""
    if stub.is_stub(build.model):
        return stub.build(build)
    return Engine.from_pretrained(
        build.model,
        drafter=build.drafters,
        rule=build.rule,
        policy=build.policy,
        allow_lossy=build.allow_lossy,
        threads=build.threads,
        cache_tokens=build.cache_tokens,
        context=build.context,
        rows=build.rows,
        nodes=build.nodes,
        max_batch=build.max_batch,
    )


class Link:
    """The worker's end of the socket pair."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._splitter = wire.Splitter()
        self.open = True

    def receive(self, *, wait: bool) -> list[bytes]:
        """The frames that have come; wait: until there is at least one, or the other end is closed."""
        frames: list[bytes] = []
        while self.open and ((wait and not frames) or select.select([self._socket], [], [], 0)[0]):
            data = self._socket.recv(READ_BYTES)
            self.open = bool(data)
            frames += self._splitter.push(data)
        return frames

    def send(self, *reports: wire.Report) -> None:
        """Send reports; waits where the server is slow to read."""
        self._socket.sendall(b"".join(map(wire.pack, reports)))


class Worker:
    """Does what the server orders, and reports what its engine made of it."""

    def __init__(self, link: Link, engine: Engine) -> None:
        self._link = link
        self._engine = engine
        self._server_ids: dict[int, int] = {}  # by the engine's number of a request
        self._engine_ids: dict[int, int] = {}  # by the server's

    def run(self) -> None:
        """Step the engine while there is work, wait for orders while there is none."""
        while self._link.open:
            for frame in self._link.receive(wait=self._engine.idle):
                self._follow(wire.order_decoder.decode(frame))
            if not self._engine.idle:
                self._report(self._engine.step())

    def _follow(self, order: wire.Order) -> None:
        if isinstance(order, wire.Submit):
            self._submit(order)
        elif order.id in self._engine_ids:
            self._engine.cancel(self._engine_ids[order.id])
            if self._engine.idle:
                self._report(self._engine.step())  # hands out what the cancelled request ended with

    def _submit(self, order: wire.Submit) -> None:
        try:
            request = self._engine.submit(
                order.prompt,
                order.params,
                order.drafter,
                prediction=order.prediction,
                limit=None if order.limit is None else Budget(*order.limit),
                cache_salt=order.cache_salt,
            )
        except PacelineError as error:
            kinds = {CapacityError: "capacity", QueueFull: "full"}
            self._link.send(wire.Refused(order.id, str(error), kinds.get(type(error), "invalid")))
            return
        self._server_ids[request] = order.id
        self._engine_ids[order.id] = request
        self._link.send(wire.Accepted(order.id))

    def _report(self, events: list[Event]) -> None:
        reports: list[wire.Report] = []
        for event in events:
            id = self._server_ids[event.request]
            if event.finish is not None:
                del self._server_ids[event.request], self._engine_ids[id]
                event = replace(event, finish=replace(event.finish, text="", token_ids=(), logprobs=None))
            reports.append(wire.Answered(id, event))
        self._link.send(*reports, wire.Busy(self._engine.load))


if __name__ == "__main__":
    main(int(sys.argv[1]))
