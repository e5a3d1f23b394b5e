"""From the bytes of a body to a typed record, or a refusal that names the parameter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

import msgspec

from paceline.serve.failures import ApiError, invalid_json, refused, unsupported
from paceline.serve.schema import UNSUPPORTED

MAX_DEPTH = 64
"""How deep JSON may be nested."""

T = TypeVar("T", bound=msgspec.Struct)

_PLACE = re.compile(r" - at `\$\.?([^`.\[]*)[^`]*`$")
_MISSING = re.compile(r"missing required field `(\w+)`")


def read(body: bytes, kind: type[T], *, strict: bool) -> tuple[T, list[str]]:
    """The record that a body holds, and the names of its parameters that are not known.

    Raises ApiError for what is not one JSON object without duplicate keys, for a value of the wrong type,
    for a parameter that is refused, and, where `strict`, for one that is not known.
    """
    values = parse(body)
    for name in UNSUPPORTED.keys() & values.keys():
        if values[name] is not None:
            raise unsupported(name, UNSUPPORTED[name])
    unknown = sorted(values.keys() - set(kind.__struct_fields__) - UNSUPPORTED.keys())
    if unknown and strict:
        known = ", ".join(sorted(kind.__struct_fields__))
        raise refused(f"unknown parameter {unknown[0]!r}; known are {known}", unknown[0], "unknown_parameter")
    try:
        return msgspec.convert(values, kind), unknown
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from None


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds. Raises ApiError."""
    try:
        values = json.loads(body.decode(), object_pairs_hook=_once_each, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise invalid_json(f"it is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise invalid_json(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise invalid_json(str(error)) from None
    if not isinstance(values, dict):
        raise invalid_json(f"found {type(values).__name__}, expected an object")
    if _deeper_than(MAX_DEPTH, values):
        raise invalid_json(f"it is nested deeper than {MAX_DEPTH} levels")
    return values


def _once_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        again = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {again[:60]!r} is there twice")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _deeper_than(limit: int, value: Any) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for nest in level
            if isinstance(nest, dict | list)
            for inner in (nest.values() if isinstance(nest, dict) else nest)
        ]
    return any(isinstance(nest, dict | list) for nest in level)


def _wrong(message: str) -> ApiError:
    """The refusal for a value of the wrong type: msgspec says where it stands."""
    place, missing = _PLACE.search(message), _MISSING.search(message)
    top = place[1] if place else ""
    if missing and not top:
        return refused(f"{missing[1]} is missing", missing[1], "missing_required_parameter")
    where = message[place.start() :].removeprefix(" - at `$.").rstrip("`") if place else "the body"
    said = _PLACE.sub("", message)
    return refused(f"{where}: {said[:1].lower()}{said[1:]}", top or None, "invalid_type")
