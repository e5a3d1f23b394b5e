"""Calls of functions: how they are offered to a model, forced into form, and read out of its answer.

A call stands in the answer as

    <tool_call>
    {"name": "lookup", "arguments": {"word": "pace"}}
    </tool_call>

which is the form that many open models were trained on. A grammar holds the answer to it: the arguments keep
to the function's schema, and an answer that is not a call does not begin with "<".
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from paceline.errors import ConfigError
from paceline.grammar import Grammar
from paceline.serve import formats, schema
from paceline.serve.failures import refused, unsupported

MAX_TOOLS = 64
CHOICES = ("none", "auto", "required")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BEGIN = re.compile(r'\n?<tool_call>\n\{"name": "([A-Za-z0-9_-]+)", "arguments": ')
_END = "}\n</tool_call>"
_NO_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TEXT = r"/([^<](.|\n)*)?/"
_INTRODUCTION = """\
You can call functions. To call one, answer with nothing but this, the arguments as a JSON object:
<tool_call>
{"name": NAME, "arguments": ARGUMENTS}
</tool_call>
The functions, each as JSON with the schema of its arguments:
"""


class Offer(NamedTuple):
    """functions: what the model is told of; grammar: the answers it may give."""

    functions: Sequence[schema.Function]
    grammar: Grammar


def offer(request: schema.ChatRequest) -> Offer | None:
    """What a request lets the model call; None for nothing. Raises ApiError."""
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "none", "auto"):
            raise refused("tool_choice needs tools", "tool_choice")
        return None
    if len(request.tools) > MAX_TOOLS:
        raise refused(f"up to {MAX_TOOLS} tools, got {len(request.tools)}", "tools")
    for tool in request.tools:
        if tool.type != "function":
            raise unsupported("tools", f"a tool of type {tool.type[:40]!r}; only functions can be called")
        if not _NAME.fullmatch(tool.function.name):
            raise refused("a function's name has 1 to 64 letters, digits, _ and -", "tools")
    functions = {tool.function.name: tool.function for tool in request.tools}
    if len(functions) < len(request.tools):
        raise refused("two functions have the same name", "tools")
    if isinstance(choice, str) and choice not in CHOICES:
        raise refused(f"tool_choice must be one of {', '.join(CHOICES)}, or a function", "tool_choice")
    if choice == "none":
        return None
    callable_now = list(functions.values())
    if isinstance(choice, schema.NamedTool):
        if choice.function.name not in functions:
            raise refused(f"tool_choice: there is no function {choice.function.name[:60]!r}", "tool_choice")
        callable_now = [functions[choice.function.name]]
    may_talk = choice in (None, "auto")
    once = request.parallel_tool_calls is False or isinstance(choice, schema.NamedTool)
    return Offer(list(functions.values()), _grammar(callable_now, may_talk=may_talk, once=once))


def _grammar(functions: Sequence[schema.Function], *, may_talk: bool, once: bool) -> Grammar:
    calls = "call" if once else 'call ("\\n" call)*'
    rules = [f"start: {calls} | text" if may_talk else f"start: {calls}"]
    if may_talk:
        rules.append(f"text: {_TEXT}")
    rules.append("call: " + " | ".join(f"call_{place}" for place in range(len(functions))))
    for place, function in enumerate(functions):
        parameters: dict[str, Any] = function.parameters or {"type": "object", "properties": {}}
        formats.checked(parameters, "tools")
        begin = json.dumps(f'<tool_call>\n{{"name": "{function.name}", "arguments": ')
        rules.append(f"call_{place}: {begin} arguments_{place} {json.dumps(_END)}")
        rules.append(f"arguments_{place}: %json {json.dumps(parameters | {'x-guidance': _NO_SPACES})}")
    try:
        return Grammar.lark("\n".join(rules))
    except ConfigError as error:
        raise refused(str(error), "tools", "invalid_json_schema") from None


def introduce(messages: list[dict[str, str]], offered: Offer) -> list[dict[str, str]]:
    """The conversation with a system message that says what can be called."""
    lines = [
        json.dumps(
            {
                "name": function.name,
                "description": function.description or "",
                "parameters": function.parameters or {"type": "object", "properties": {}},
            },
            ensure_ascii=False,
        )
        for function in offered.functions
    ]
    text = _INTRODUCTION + "\n".join(lines)
    if messages[0]["role"] == "system":
        first, *others = messages
        return [{"role": "system", "content": f"{first['content']}\n\n{text}"}, *others]
    return [{"role": "system", "content": text}, *messages]


def spelled(call: schema.ToolCall) -> str:
    """A call of an earlier answer as the model wrote it."""
    begin = f'<tool_call>\n{{"name": "{call.function.name}", "arguments": '
    return f"{begin}{call.function.arguments or '{}'}{_END}"


class Piece(NamedTuple):
    """What some text of an answer was: talk (call None), or a part of the call with this number.

    name, id: in the first piece of a call; text: of its arguments
    """

    call: int | None
    text: str
    name: str | None = None
    id: str | None = None


class CallReader:
    """Takes an answer apart as it grows."""

    def __init__(self) -> None:
        self._held = ""
        self._talks: bool | None = None
        self._calls = 0
        self._inside = False

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return self._calls > 0

    def push(self, text: str) -> list[Piece]:
        """What the text adds."""
        self._held += text
        if self._talks is None and self._held:
            self._talks = not self._held.startswith("<")
        if self._talks:
            said, self._held = self._held, ""
            return [Piece(None, said)] if said else []
        pieces: list[Piece] = []
        while self._inside or (begin := _BEGIN.match(self._held)):
            if not self._inside:
                assert begin is not None, "the loop's condition"
                pieces.append(Piece(self._calls, "", begin[1], f"call_{secrets.token_hex(12)}"))
                self._held = self._held[begin.end() :]
                self._calls += 1
                self._inside = True
            arguments, end, rest = self._held.partition(_END)
            if not end:
                # The end may have begun; JSON without line breaks never holds it.
                keep = next((n for n in range(len(_END), 0, -1) if arguments.endswith(_END[:n])), 0)
                arguments, rest = arguments[: len(arguments) - keep], arguments[len(arguments) - keep :]
            if arguments:
                pieces.append(Piece(self._calls - 1, arguments))
            self._held = rest
            self._inside = not end
            if self._inside:
                break
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back when the answer was cut; the beginning of a call without a name is nothing."""
        held, self._held = self._held, ""
        return [Piece(self._calls - 1, held)] if held and self._inside else []
