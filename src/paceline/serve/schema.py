"""Requests as typed records. Values are checked against these types by `reading`, against bounds by `jobs`.

A field that is missing or null has its default. Names and meanings are OpenAI's where OpenAI has them, else
vLLM's; `speculative` is our own.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Part(msgspec.Struct, frozen=True):
    """A part of a message's content; text is the only type that is taken."""

    type: str
    text: str | None = None


Content = str | list[Part] | None


class CalledFunction(msgspec.Struct, frozen=True):
    """A call in an earlier answer. arguments: JSON as text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call in an earlier answer."""

    function: CalledFunction
    id: str | None = None
    type: str = "function"


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: Content = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class Function(msgspec.Struct, frozen=True):
    """A function that the model may call. parameters: the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """Something the model may use; functions are the only kind."""

    function: Function
    type: str = "function"


class FunctionName(msgspec.Struct, frozen=True):
    """The name of a function."""

    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """The function that must be called."""

    function: FunctionName
    type: str = "function"


class JsonSchema(msgspec.Struct, frozen=True):
    """A JSON schema with a name."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """type: "text", "json_object" or "json_schema"."""

    type: str
    json_schema: JsonSchema | None = None


class Speculative(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How this request is drafted for; it changes the speed, never the answer.

    drafter  one that the server has loaded
    nodes    drafted tokens scored in a pass at most; depth: along one path
    off      plain decoding
    """

    drafter: str | None = None
    nodes: int | None = None
    depth: int | None = None
    off: bool = False


class Prediction(msgspec.Struct, frozen=True):
    """What the answer will nearly be."""

    content: str | list[Part]
    type: str = "content"


class StreamOptions(msgspec.Struct, frozen=True):
    """include_usage: whether a last chunk has the counts."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Asking(msgspec.Struct, kw_only=True):
    """What all requests for answers share. user, metadata: the client's own notes, not used."""

    model: str
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    speculative: Speculative | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


class Sampled(Asking, kw_only=True):
    """The rest of `paceline.SamplingParams`, and how answers come."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    cache_salt: str | None = None


class ChatRequest(Sampled, kw_only=True):
    """/v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None


class CompletionRequest(Sampled, kw_only=True):
    """/v1/completions. prompt: text, token ids, or a list of those."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None


class ResponsesText(msgspec.Struct, frozen=True):
    """The form of the answer."""

    format: dict[str, Any] | None = None


class ResponsesRequest(Asking, kw_only=True):
    """/v1/responses: text in, text out. store: nothing is ever stored."""

    input: str | list[Message]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: ResponsesText | None = None
    store: bool | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """/tokenize: the ids of a prompt or of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """/detokenize: the text of token ids."""

    model: str | None = None
    tokens: list[int]


UNSUPPORTED = {
    "audio": "this server answers with text",
    "best_of": "it would hide answers; ask for n and choose",
    "chat_template": "templates come from the model's file only",
    "chat_template_kwargs": "templates come from the model's file only",
    "documents": "put the text into the messages",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "guided_grammar": "use response_format",
    "guided_json": "use response_format",
    "guided_regex": "use response_format",
    "image_url": "this server reads text only",
    "modalities": "this server answers with text",
    "previous_response_id": "nothing is stored; send the whole conversation",
    "prompt_embeds": "tensors are not taken over HTTP",
    "structured_outputs": "use response_format",
    "suffix": "text is only ever continued",
    "use_beam_search": "answers are drawn, not searched",
    "web_search_options": "this server fetches nothing",
}
"""Parameters that would change the answer and are refused, even where unknown ones are overlooked."""
