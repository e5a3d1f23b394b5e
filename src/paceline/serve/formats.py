"""The grammar of an answer's form, and what schemas a server takes.

What `paceline.grammar` refuses is refused; beyond that, schemas that a client could use to keep a server
busy: ones that lead back to themselves, and patterns that repeat a repetition.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from paceline.errors import ConfigError
from paceline.grammar import Grammar
from paceline.serve import schema
from paceline.serve.failures import ApiError, refused

FORMATS = ("text", "json_object", "json_schema")

_REPEATED_REPETITION = re.compile(r"\((?:\?:)?(?:\\.|\[[^\]]*\]|[^()\[\]\\])[+*]\)[+*{]")


def grammar_of(asked: schema.ResponseFormat | None) -> Grammar | None:
    """The grammar for a response_format; None for text. Raises ApiError."""
    if asked is None or asked.type == "text":
        return None
    if asked.type not in FORMATS:
        raise refused(
            f"response_format.type must be one of {', '.join(FORMATS)}; got {asked.type[:40]!r}",
            "response_format",
        )
    if asked.type == "json_object":
        return Grammar.json_object()
    if asked.json_schema is None or asked.json_schema.schema is None:
        raise _bad("json_schema.schema is missing", "response_format")
    return checked(asked.json_schema.schema, "response_format")


def checked(given: dict[str, Any], param: str) -> Grammar:
    """The grammar of a schema. Raises ApiError with the code invalid_json_schema."""
    try:
        _check_shape(given)
        return Grammar.json_schema(given)
    except ConfigError as error:
        raise _bad(str(error), param) from None


def _check_shape(given: dict[str, Any]) -> None:
    if len(json.dumps(given)) > 1 << 16:
        return  # too large: refused by Grammar
    targets: dict[str, set[str]] = {}
    for pointer, nest in _nests(given):
        pattern = nest.get("pattern")
        if isinstance(pattern, str) and (found := _REPEATED_REPETITION.search(pattern)):
            raise ConfigError(
                f"the JSON schema's pattern {found[0][:40]!r} repeats a repetition; one will do"
            )
        if isinstance(reference := nest.get("$ref"), str) and reference.startswith("#"):
            targets.setdefault(reference.removeprefix("#"), set()).add(pointer)
    if loop := _loop(targets):
        raise ConfigError(f"the JSON schema leads back to itself: {loop[:60]!r}")


def _nests(given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a schema, with the JSON pointer to it. Stops at a depth that Grammar refuses."""
    level = [("", given)]
    for _ in range(64):
        below = []
        for pointer, value in level:
            if isinstance(value, dict):
                yield pointer, value
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                if isinstance(inner, dict | list):
                    below.append((f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}", inner))
        level = below


def _loop(targets: dict[str, set[str]]) -> str:
    """A reference inside what it refers to, directly or through others; "" if there is none."""

    def inside(pointer: str, of: str) -> bool:
        return pointer == of or pointer.startswith(f"{of}/")

    # What each target refers to: the targets of the references that stand in it.
    uses = {
        target: {other for other, places in targets.items() for place in places if inside(place, target)}
        for target in targets
    }
    for start in uses:
        seen: set[str] = set()
        frontier = uses[start]
        while frontier:
            seen |= frontier
            frontier = {other for target in frontier for other in uses[target]} - seen
        if start in seen:
            return f"#{start}"
    return ""


def _bad(message: str, param: str) -> ApiError:
    return refused(message, param, "invalid_json_schema")
