"""Rendering a model's chat template without letting a message forge control tokens.

Templates are programs from a model file: they run in jinja2's immutable sandbox. They write control tokens
such as `<|im_end|>` as plain text between the messages, so the rendered text alone does not tell a control
token of the template from the same characters typed by a user. Before rendering, one character of every
control token that a message spells out, or could complete together with the text around it, is therefore
replaced by a private-use character that occurs nowhere else, and restored after the template's own control
tokens have been cut out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from paceline.errors import ConfigError, ModelFileError

ROLES = ("system", "user", "assistant", "tool")
"""Roles a message may have; templates build control tokens from them, so no other word may get through."""

Messages = Sequence[Mapping[str, str]]


class ChatTemplate:
    """A compiled template.

    source     Jinja source from the model file
    controls   texts of the control tokens
    variables  what the template sees beside the messages, such as `bos_token`

    Raises ModelFileError if the source is not a template.
    """

    def __init__(self, source: str, controls: Sequence[str], variables: Mapping[str, str]) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # What model files expect of the environment, as set up by the transformers library.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelFileError(f"chat template: {_one_line(error)}") from None
        self._source = source
        self._controls = controls
        self._variables = dict(variables)
        self._any_control = control_pattern(self._controls)

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> list[str]:
        """The conversation as text, control token, text, control token, ..., text.

        Raises ConfigError if the messages are not a conversation or the template refuses them, and
        ModelFileError if the template fails.
        """
        check_messages(messages)
        contents = [message["content"] for message in messages]
        guard = _Guard(self._controls, [self._source, *contents])
        guarded = [
            {"role": message["role"], "content": guard.hide(content)}
            for message, content in zip(messages, contents, strict=True)
        ]
        try:
            text = self._template.render(
                messages=guarded, add_generation_prompt=add_generation_prompt, **self._variables
            )
        except _Refused as error:
            raise ConfigError(f"the model's chat template refuses the messages: {_one_line(error)}") from None
        except Exception as error:
            # A template is a program of its author's: it can fail in any way.
            raise ModelFileError(f"chat template: {_one_line(error)}") from None
        pieces = self._any_control.split(text)
        pieces[::2] = map(guard.restore, pieces[::2])
        return pieces


def check_messages(messages: Messages) -> None:
    """Raise ConfigError unless this is a list of {"role", "content"} with a known role and text."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise ConfigError('messages: expected a list of {"role": ..., "content": ...}, at least one')
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
            raise ConfigError(f"messages[{index}]: found {found}, expected the keys role and content")
        if message["role"] not in ROLES:
            raise ConfigError(
                f"messages[{index}].role: found {message['role']!r}, expected one of {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str):
            found = type(message["content"]).__name__
            raise ConfigError(f"messages[{index}].content: found {found}, expected text")


def control_pattern(controls: Iterable[str]) -> re.Pattern[str]:
    """An expression that `split`s a text into text, control token, text, control token, ..., text."""
    longest_first = sorted(controls, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "((?!))")


class _Guard:
    """Hides characters behind private-use ones that none of `texts` contains."""

    def __init__(self, controls: Sequence[str], texts: Sequence[str]) -> None:
        self._controls = controls
        used = set().union(*texts)
        self._free: Iterator[str] = (
            character for character in map(chr, range(0x100000, 0x10FFFE)) if character not in used
        )
        self._hidden: dict[str, str] = {}
        self._every = re.compile(f"(?={'|'.join(map(re.escape, controls))})") if controls else None

    def hide(self, content: str) -> str:
        """The content with no control token in it, and none that text before or after it could complete."""
        if self._every is None:
            return content
        places = {match.start() for match in self._every.finditer(content)}
        # Templates like to strip what they are given, so the edges are those of the stripped text.
        inner = content.strip()
        start = content.find(inner)
        for control in self._controls:
            if inner and inner in control:
                places.add(start)
            for size in range(1, len(control)):
                if inner.startswith(control[-size:]):
                    places.add(start)
                if inner.endswith(control[:size]):
                    places.add(start + len(inner) - size)
        characters = list(content)
        for place in places:
            characters[place] = self._mask(characters[place])
        return "".join(characters)

    def _mask(self, character: str) -> str:
        if character not in self._hidden:
            self._hidden[character] = next(self._free)
        return self._hidden[character]

    def restore(self, text: str) -> str:
        """The text with every hidden character shown again."""
        return text.translate({ord(mask): character for character, mask in self._hidden.items()})


class _Refused(Exception):
    """Raised by a template through `raise_exception`."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
