"""Responses and chunks of /v1/chat/completions and /v1/completions, as OpenAI's clients read them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from paceline.models.tokenizer import Tokenizer
from paceline.results import Completion, Event, TokenLogprobs
from paceline.serve import figures
from paceline.serve.jobs import Job
from paceline.serve.tools import CallReader, Piece

Json = dict[str, Any]

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


@dataclass(slots=True)
class Choice:
    """One answer as it comes in. characters: of all its text."""

    text: list[str] = field(default_factory=list)
    characters: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    calls: CallReader = field(default_factory=CallReader)
    finish: Completion | None = None

    def take(self, event: Event) -> None:
        """Add what an event brings."""
        self.text.append(event.text)
        self.characters += len(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs or ()
        self.finish = event.finish


class Answer(ABC):
    """All answers of one HTTP request, and what is said of them: in one response once they are complete, or
    in records of a stream while they grow. Subclasses are the forms of the routes.

    named: whether the records of a stream are events with a name, their "type"
    """

    named: ClassVar[bool] = False

    def __init__(self, job: Job, model: str, tokenizer: Tokenizer, id: str) -> None:
        self.job = job
        self.choices = [Choice() for _ in job.orders]
        self._tokenizer = tokenizer
        self._head: Json = {"id": id, "created": int(time.time()), "model": model}

    @property
    def complete(self) -> bool:
        """Whether every answer has ended."""
        return all(choice.finish is not None for choice in self.choices)

    @property
    def completions(self) -> list[Completion]:
        """Of the answers that have ended."""
        return [choice.finish for choice in self.choices if choice.finish is not None]

    def take(self, index: int, event: Event) -> None:
        """Add an event to the answer with this index."""
        self.choices[index].take(event)

    @abstractmethod
    def response(self) -> Json:
        """The whole response."""
        ...

    @abstractmethod
    def opening(self) -> Iterator[Json]:
        """Records before any token."""
        ...

    @abstractmethod
    def grow(self, index: int, event: Event) -> Iterator[Json]:
        """`take`, and the records for it."""
        ...

    @abstractmethod
    def closing(self) -> Iterator[Json]:
        """Records behind all tokens."""
        ...

    @property
    def read(self) -> int:
        """Tokens of the prompts."""
        return sum(map(len, self.job.prompts))

    @property
    def written(self) -> int:
        """Tokens of the answers."""
        return 0 if self.job.hollow else sum(len(choice.token_ids) for choice in self.choices)

    def made(self) -> Json:
        """How the answers were made, as far as they have ended."""
        done = self.completions
        return {
            "metrics": {"speculative_decoding": figures.speculative_decoding(done)},
            "timings": figures.timings(done),
        }


class Choices(Answer):
    """What the two older forms share: a list of choices, and chunks that have the same list."""

    whole: ClassVar[str]
    part: ClassVar[str]

    def response(self) -> Json:
        """See `Answer`."""
        choices = [
            {"index": index, **self._whole(index), **self._ending(choice)}
            for index, choice in enumerate(self.choices)
        ]
        return {**self._head, "object": self.whole, "choices": choices, "usage": self.usage(), **self.made()}

    def opening(self) -> Iterator[Json]:
        """See `Answer`."""
        for index in range(len(self.choices)):
            if (body := self._opening(index)) is not None:
                yield self._chunk([{"index": index, **body, "logprobs": None, "finish_reason": None}])

    def grow(self, index: int, event: Event) -> Iterator[Json]:
        """See `Answer`. The last choice to end brings the figures, unless usage was asked for, which comes
        in a chunk of its own, and they with it."""
        choice = self.choices[index]
        offset = choice.characters
        choice.take(event)
        if event.text or event.finish is not None or event.logprobs:
            body = self._part(index, event, offset)
            chunk = self._chunk([{"index": index, **body, **self._ending(choice)}])
            if self.complete and not self.job.include_usage:
                chunk |= self.made()
            yield chunk

    def closing(self) -> Iterator[Json]:
        """See `Answer`."""
        if self.job.include_usage:
            yield {**self._chunk([]), "usage": self.usage(), **self.made()}

    @abstractmethod
    def _whole(self, index: int) -> Json:
        """A choice of the response."""
        ...

    @abstractmethod
    def _opening(self, index: int) -> Json | None:
        """A choice of the first chunk, if there is one before any token."""
        ...

    @abstractmethod
    def _part(self, index: int, event: Event, offset: int) -> Json:
        """A choice of a chunk; offset: characters that came before."""
        ...

    def _chunk(self, choices: Sequence[Json]) -> Json:
        return {**self._head, "object": self.part, "choices": choices}

    def _ending(self, choice: Choice) -> Json:
        finish = choice.finish
        if finish is None:
            return {"finish_reason": None}
        reason = {"cancelled": "stop"}.get(finish.finish_reason, finish.finish_reason)
        if self.job.hollow:
            reason = "length"
        elif choice.calls.called and reason == "stop":
            reason = "tool_calls"
        return {
            "finish_reason": reason,
            "stop_reason": finish.stop_reason,
            "seed": finish.seed,
            "drafter": finish.drafter,
            "promise": finish.promise,
        }

    def usage(self) -> Json:
        """Tokens read and written, and what became of a prediction."""
        read, written = self.read, self.written
        usage: Json = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        if self.job.predicted:
            stats = [completion.stats for completion in self.completions]
            accepted = sum(one.accepted for one in stats)
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": sum(one.drafted for one in stats) - accepted,
            }
        return usage

    def _name(self, token_id: int) -> str:
        return self._tokenizer.piece(token_id).decode(errors="replace")


class ChatAnswer(Choices):
    """/v1/chat/completions."""

    whole = "chat.completion"
    part = "chat.completion.chunk"

    def _whole(self, index: int) -> Json:
        choice = self.choices[index]
        message: Json = {"role": "assistant", "content": "".join(choice.text), "refusal": None}
        if self.job.tools:
            message |= _called([*choice.calls.push("".join(choice.text)), *choice.calls.finish()])
        return {"message": message, "logprobs": self._logprobs(choice.logprobs)}

    def _opening(self, index: int) -> Json:
        return {"delta": {"role": "assistant", "content": ""}}

    def _part(self, index: int, event: Event, offset: int) -> Json:
        delta: Json = {"content": event.text} if event.text else {}
        if self.job.tools:
            calls = self.choices[index].calls
            delta = _delta(calls.push(event.text) + (calls.finish() if event.finish else []))
        return {"delta": delta, "logprobs": self._logprobs(event.logprobs or ())}

    def _logprobs(self, stated: Sequence[TokenLogprobs]) -> Json | None:
        if self.job.logprobs is None:
            return None
        return {
            "content": [
                self._stated(token.token_id, token.logprob)
                | {"top_logprobs": [self._stated(other.token_id, other.logprob) for other in token.top]}
                for token in stated
            ],
            "refusal": None,
        }

    def _stated(self, token_id: int, logprob: float) -> Json:
        return {
            "token": self._name(token_id),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(self._tokenizer.piece(token_id)),
        }


class CompletionAnswer(Choices):
    """/v1/completions."""

    whole = part = "text_completion"

    def _whole(self, index: int) -> Json:
        choice = self.choices[index]
        prompt = self.job.prompts[index // self.job.n] if self.job.echo else []
        finish = choice.finish
        before = (finish and finish.prompt_logprobs) or [None] * len(prompt)
        stated = [*zip(prompt, before, strict=True)]
        if not self.job.hollow:
            stated += [(token.token_id, token) for token in choice.logprobs]
        text = "" if self.job.hollow else "".join(choice.text)
        return {"text": self._tokenizer.decode(prompt) + text, "logprobs": self._logprobs(stated, 0)}

    def _opening(self, index: int) -> Json | None:
        if not self.job.echo:
            return None
        return {"text": self._tokenizer.decode(self.job.prompts[index // self.job.n])}

    def _part(self, index: int, event: Event, offset: int) -> Json:
        stated = [(token.token_id, token) for token in event.logprobs or ()]
        return {
            "text": "" if self.job.hollow else event.text,
            "logprobs": self._logprobs(stated, offset),
        }

    def _logprobs(self, stated: Sequence[tuple[int, TokenLogprobs | None]], offset: int) -> Json | None:
        """The four lists; a prompt's first token has no log-probability. offset: of the first text."""
        if self.job.logprobs is None:
            return None
        lists: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, token in stated:
            name = self._name(token_id)
            lists["tokens"].append(name)
            lists["text_offset"].append(offset)
            offset += len(name)
            if token is None:
                lists["token_logprobs"].append(None)
                lists["top_logprobs"].append(None)
                continue
            lists["token_logprobs"].append(max(token.logprob, LEAST_LOGPROB))
            # The first of two tokens that look alike is the likelier one.
            top = {
                self._name(other.token_id): max(other.logprob, LEAST_LOGPROB) for other in reversed(token.top)
            }
            lists["top_logprobs"].append(top)
        return lists


def _called(pieces: Iterable[Piece]) -> Json:
    """The content and the calls of a whole message."""
    said: list[str] = []
    calls: list[Json] = []
    for piece in pieces:
        if piece.call is None:
            said.append(piece.text)
            continue
        if piece.name is not None:
            function = {"name": piece.name, "arguments": ""}
            calls.append({"id": piece.id, "type": "function", "function": function})
        calls[piece.call]["function"]["arguments"] += piece.text
    content: Json = {"content": "".join(said) or None}
    return content | ({"tool_calls": calls} if calls else {})


def _delta(pieces: Iterable[Piece]) -> Json:
    """The same for a chunk. Clients take it that a call has one entry in a chunk."""
    said: list[str] = []
    calls: dict[int, Json] = {}
    for piece in pieces:
        if piece.call is None:
            said.append(piece.text)
            continue
        if piece.name is not None:
            function = {"name": piece.name, "arguments": ""}
            calls[piece.call] = {
                "index": piece.call,
                "id": piece.id,
                "type": "function",
                "function": function,
            }
        call = calls.setdefault(piece.call, {"index": piece.call, "function": {"arguments": ""}})
        call["function"]["arguments"] += piece.text
    delta: Json = {"content": "".join(said)} if said else {}
    return delta | ({"tool_calls": list(calls.values())} if calls else {})
