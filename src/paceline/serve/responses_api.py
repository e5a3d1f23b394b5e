"""/v1/responses: OpenAI's newer form, for text. Nothing is stored, so every request stands for itself."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from paceline.models.tokenizer import Tokenizer
from paceline.results import Event
from paceline.serve import jobs, schema
from paceline.serve.answers import Answer, Json
from paceline.serve.failures import ApiError, refused
from paceline.serve.wire import Ready


def job(request: schema.ResponsesRequest, info: Ready, tokenizer: Tokenizer, salt: str) -> jobs.Job:
    """What such a request asks for. Raises ApiError."""
    messages = (
        [schema.Message("user", request.input)] if isinstance(request.input, str) else list(request.input)
    )
    if not messages:
        raise refused("input must hold at least one message", "input")
    if request.instructions is not None:
        messages.insert(0, schema.Message("system", request.instructions))
    chat = schema.ChatRequest(
        model=request.model,
        messages=messages,
        stream=request.stream,
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        response_format=_format(request.text),
        speculative=request.speculative,
    )
    try:
        return jobs.chat_job(chat, info, tokenizer, salt)
    except ApiError as error:
        error.param = _NAMES.get(error.param or "", error.param)
        raise


_NAMES = {"messages": "input", "max_completion_tokens": "max_output_tokens", "response_format": "text"}
"""What parameters of a chat request are called here."""


def _format(text: schema.ResponsesText | None) -> schema.ResponseFormat | None:
    """A response_format: here the schema stands beside the type, not in an object of its own."""
    if text is None or text.format is None:
        return None
    kind = text.format.get("type")
    if kind != "json_schema":
        return schema.ResponseFormat(str(kind))
    try:
        return schema.ResponseFormat("json_schema", msgspec.convert(text.format, schema.JsonSchema))
    except msgspec.ValidationError as error:
        raise refused(f"text.format: {error}", "text") from None


class ResponsesAnswer(Answer):
    """One message with one text."""

    named: ClassVar[bool] = True

    def __init__(self, job: jobs.Job, model: str, tokenizer: Tokenizer, id: str) -> None:
        super().__init__(job, model, tokenizer, id)
        self._item = f"msg_{secrets.token_hex(12)}"
        self._number = 0

    def response(self) -> Json:
        """See `Answer`."""
        (choice,) = self.choices
        cut = choice.finish is not None and choice.finish.finish_reason == "length"
        status = ("incomplete" if cut else "completed") if self.complete else "in_progress"
        params = self.job.orders[0].params
        return {
            "id": self._head["id"],
            "object": "response",
            "created_at": self._head["created"],
            "model": self._head["model"],
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "error": None,
            "instructions": None,
            "metadata": {},
            "output": [self._message(status)] if self.complete else [],
            "parallel_tool_calls": False,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "tool_choice": "none",
            "tools": [],
            "usage": self._usage() if self.complete else None,
            **(self.made() if self.complete else {}),
        }

    def opening(self) -> Iterator[Json]:
        """See `Answer`."""
        yield self._record("response.created", response=self.response())
        yield self._record("response.in_progress", response=self.response())
        item = self._message("in_progress") | {"content": []}
        yield self._record("response.output_item.added", output_index=0, item=item)
        yield self._record("response.content_part.added", **self._place(), part=self._part(""))

    def grow(self, index: int, event: Event) -> Iterator[Json]:
        """See `Answer`."""
        self.take(index, event)
        if event.text:
            yield self._record("response.output_text.delta", **self._place(), delta=event.text, logprobs=[])

    def closing(self) -> Iterator[Json]:
        """See `Answer`."""
        response = self.response()
        (message,) = response["output"]
        (part,) = message["content"]
        yield self._record("response.output_text.done", **self._place(), text=part["text"], logprobs=[])
        yield self._record("response.content_part.done", **self._place(), part=part)
        yield self._record("response.output_item.done", output_index=0, item=message)
        yield self._record(f"response.{response['status']}", response=response)

    def _record(self, type: str, **more: Any) -> Json:
        record = {"type": type, "sequence_number": self._number, **more}
        self._number += 1
        return record

    def _place(self) -> Json:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _message(self, status: str) -> Json:
        text = "".join(self.choices[0].text)
        return {
            "id": self._item,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self._part(text)],
        }

    def _part(self, text: str) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _usage(self) -> Json:
        return {
            "input_tokens": self.read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.read + self.written,
        }
