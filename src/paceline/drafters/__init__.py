"""Finding drafters: one file each, the file name is the name that users type.

A drafter's file has a function `build(info, *, option=default, ...)`; its keyword-only parameters are the
drafter's options. Packages add drafters through the entry point group "paceline.drafters", whose entries
name such a function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from paceline.core import Drafter, TargetInfo
from paceline.errors import ConfigError

ENTRY_POINTS = "paceline.drafters"


def names() -> list[str]:
    """All drafters that can be loaded, sorted: those in this folder and those of other packages."""
    return sorted({*_own_names(), *_foreign()})


def options(name: str) -> Mapping[str, int | float | bool | str]:
    """The drafter's options and their defaults. Raises ConfigError if there is no such drafter."""
    parameters = inspect.signature(_builder(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def load(spec: str, info: TargetInfo) -> Drafter:
    """The drafter that `spec` describes: a name, or name:option=value,option=value.

    Raises ConfigError for an unknown name or option, or a value of the wrong kind, saying what is legal;
    and what the drafter itself raises for a value out of range.
    """
    name, _, settings = spec.partition(":")
    build = _builder(name)
    known = options(name)
    chosen: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        option, _, text = setting.partition("=")
        if option not in known:
            legal = ", ".join(known) or "none at all"
            raise ConfigError(f"drafter {name} has no option {option!r}; it has {legal}")
        chosen[option] = _value(f"{name}:{option}", text, known[option])
    return build(info, **chosen)


def _value(name: str, text: str, default: int | float | bool | str) -> int | float | bool | str:
    """The text as a value of the default's kind."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{name} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ConfigError(f"{name} must be {kind}, got {text!r}") from None


def _builder(name: str) -> Callable[..., Drafter]:
    if name in _own_names():
        build: Callable[..., Drafter] = import_module(f"{__name__}.{name}").build
        return build
    if entry := _foreign().get(name):
        build = entry.load()
        return build
    raise ConfigError(f"there is no drafter {name!r}; there are {', '.join(names())}")


def _own_names() -> list[str]:
    files = Path(__file__).parent.glob("*.py")
    return [file.stem for file in files if not file.stem.startswith("_")]


def _foreign() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
