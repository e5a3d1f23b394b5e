"""A request for an answer on its way: from its bytes to an engine, and the engine's events to its client."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from paceline.serve import jobs, responses_api, schema
from paceline.serve.answers import Answer, ChatAnswer, CompletionAnswer, Json
from paceline.serve.backend import Backend
from paceline.serve.channel import Channel
from paceline.serve.failures import ApiError, internal, shutting_down
from paceline.serve.figures import Visited
from paceline.serve.guard import json_response
from paceline.serve.server import Server
from paceline.serve.stream import CLIENT_GONE, ClientGone, EventStream, while_connected

log = logging.getLogger(__name__)

SCHEMA_TIMEOUT_S = 2.0
"""How long the reading of a request may take that brings a schema."""


class Form(NamedTuple):
    """A route that answers. operation: what telemetry calls it; prefix: of its answers' ids; brings_schema:
    the fields that may hold one."""

    operation: str
    record: type[schema.Asking]
    job: Callable[..., jobs.Job]
    answer: type[Answer]
    prefix: str
    brings_schema: Sequence[str]


CHAT = Form("chat", schema.ChatRequest, jobs.chat_job, ChatAnswer, "chatcmpl", ("response_format", "tools"))
COMPLETION = Form(
    "text_completion",
    schema.CompletionRequest,
    jobs.completion_job,
    CompletionAnswer,
    "cmpl",
    ("response_format",),
)
RESPONSES = Form(
    "chat", schema.ResponsesRequest, responses_api.job, responses_api.ResponsesAnswer, "resp", ("text",)
)


class Visit:
    """One request for an answer. Whatever becomes of it, `end` is called once."""

    def __init__(self, server: Server, form: Form, path: str, traceparent: str) -> None:
        self._server = server
        self._path = path
        self._traceparent = traceparent
        self._form = form
        self._id = f"{form.prefix}-{secrets.token_hex(12)}"
        self._arrived = time.time()
        self._began = time.perf_counter()
        self._first_tokens: float | None = None
        self._last_tokens: float | None = None
        self._model = ""
        self._backend: Backend | None = None
        self._requests: Sequence[int] = ()
        self._answer: Answer | None = None
        server.active += 1

    async def serve(self, request: Request) -> Response:
        """The response; a stream ends the visit when it ends itself. Raises ApiError, ClientGone."""
        wanted, warning = await self._server.read(request, self._form.record)
        if self._server.draining:  # asked after the body was read: this answer closes the connection
            raise shutting_down()
        if wanted.model in self._server.fleet.names:  # any other name is the client's: figures do not keep it
            self._model = wanted.model
        backend, (info, tokenizer) = await self._server.fleet.ready(wanted.model)
        self._backend = backend
        backend.check_room(1)  # before a prompt is read for nothing
        brings_schema = any(getattr(wanted, name) for name in self._form.brings_schema)
        job = await self._server.aside(
            self._form.job,
            wanted,
            info,
            tokenizer,
            self._server.guard.owner(request.scope["headers"]) or "",
            timeout=SCHEMA_TIMEOUT_S if brings_schema else None,
        )
        answer = self._answer = self._form.answer(job, self._model, tokenizer, self._id)
        channel = Channel(bounded=job.stream)
        headers = {"X-Request-Id": self._id, **warning}
        self._requests = await while_connected(request.receive, backend.submit(job.orders, channel))
        if job.stream:
            records = self._records(answer, channel)
            return EventStream(records, headers=headers, named=answer.named, on_end=self.end)
        await while_connected(request.receive, self._collect(answer, channel))
        response = json_response(answer.response(), headers=headers)
        self.end(200)
        return response

    async def _collect(self, answer: Answer, channel: Channel) -> None:
        while not answer.complete:
            for index, event in await channel.get():
                self._note(event)
                answer.take(index, event)

    async def _records(self, answer: Answer, channel: Channel) -> AsyncGenerator[Json, None]:
        for record in answer.opening():
            yield record
        while not answer.complete:
            for index, event in await channel.get():
                self._note(event)
                for record in answer.grow(index, event):
                    yield record
        for record in answer.closing():
            yield record

    def _note(self, event: Any) -> None:
        """Note when tokens came, and end the visit where the engine failed."""
        finish = event.finish
        if finish is not None and finish.finish_reason == "error":
            raise internal(f"the answer could not be finished: {finish.stop_reason}")
        if event.token_ids:
            now = time.perf_counter()
            self._server.metrics.tokens(
                self._model, now - (self._last_tokens or self._began), first=self._last_tokens is None
            )
            self._first_tokens = self._first_tokens or now
            self._last_tokens = now

    def end(self, status: int) -> None:
        """Give up what the engine still does for this visit, count it, and log figures, never what was
        said."""
        if self._backend is not None:
            self._backend.cancel(self._requests)
        self._server.active -= 1
        visited = Visited(
            self._id,
            self._path,
            self._form.operation,
            self._model,
            status,
            self._arrived,
            time.perf_counter() - self._began,
            self._first_tokens and self._first_tokens - self._began,
            self._answer.completions if self._answer else (),
            self._traceparent,
        )
        self._server.metrics.ended(visited)
        if self._server.telemetry is not None:
            self._server.telemetry.ended(visited)
        log.info(
            "request",
            extra={
                "id": self._id,
                "path": self._path,
                "model": self._model,
                "status": status,
                "seconds": round(visited.seconds, 4),
                "prompt_tokens": self._answer.read if self._answer else 0,
                "completion_tokens": self._answer.written if self._answer else 0,
            },
        )


async def answer(request: Request, form: Form) -> Response:
    """The response to a request for an answer."""
    traceparent = request.headers.get("traceparent", "")
    visit = Visit(request.app.state.server, form, request.scope["path"], traceparent)
    try:
        return await visit.serve(request)
    except ClientGone:
        visit.end(CLIENT_GONE)
        return Response(status_code=CLIENT_GONE)  # for nobody
    except ApiError as error:
        visit.end(error.status)
        raise
    except BaseException:
        visit.end(500)
        raise
