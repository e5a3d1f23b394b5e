"""Parts that are found by their file's name and chosen by what a user types.

A user types `name` or `name:option=value,option=value`. The file `name.py` of the package holds a function
whose keyword-only parameters, with their defaults, are the options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from paceline.errors import ConfigError

Option = int | float | bool | str


class Plugins:
    """The parts of one kind.

    kind      what one is called in messages, such as "drafter"
    package   the package whose files are the parts; other packages add theirs through the entry point
              group of the same name
    function  the function's name in each file; None if it has the file's name
    """

    def __init__(self, kind: str, package: str, function: str | None) -> None:
        self._kind = kind
        self._package = package
        self._function = function

    def names(self) -> list[str]:
        """All that can be loaded, sorted."""
        return sorted({*self._own(), *self._foreign()})

    def find(self, name: str) -> Callable[..., Any]:
        """The function. Raises ConfigError if there is no such part."""
        if name in self._own():
            module = import_module(f"{self._package}.{name}")
            function: Callable[..., Any] = getattr(module, self._function or name)
            return function
        if entry := self._foreign().get(name):
            function = entry.load()
            return function
        raise ConfigError(f"there is no {self._kind} {name!r}; there are {', '.join(self.names())}")

    def options(self, name: str) -> Mapping[str, Option]:
        """A part's options and their defaults. Raises ConfigError if there is no such part."""
        parameters = inspect.signature(self.find(name)).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def parse(self, spec: str) -> tuple[str, dict[str, Option]]:
        """The name and the options that `spec` holds.

        Raises ConfigError for an unknown name or option, or a value of the wrong kind, saying what is
        legal.
        """
        name, _, settings = spec.partition(":")
        return name, parse_settings(f"{self._kind} {name}", settings, self.options(name))

    def _own(self) -> list[str]:
        folder = Path(import_module(self._package).__file__ or "").parent
        return [file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")]

    def _foreign(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self._package)}


def parse_settings(what: str, settings: str, known: Mapping[str, Option]) -> dict[str, Option]:
    """What `option=value,option=value` sets, of the options that `what` has with these defaults.

    Raises ConfigError for an unknown option or a value of the wrong kind, saying what is legal.
    """
    chosen: dict[str, Option] = {}
    for setting in filter(None, settings.split(",")):
        option, _, text = setting.partition("=")
        if option not in known:
            legal = ", ".join(known) or "none at all"
            raise ConfigError(f"{what} has no option {option!r}; it has {legal}")
        chosen[option] = _value(f"{what.split()[-1]}:{option}", text, known[option])
    return chosen


def _value(name: str, text: str, default: Option) -> Option:
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
