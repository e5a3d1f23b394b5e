"""Finding drafters: one file each, the file name is the name that users type.

A drafter's file has a function `build(info, *, option=default, ...)`; its keyword-only parameters are the
drafter's options. Packages add drafters through the entry point group "paceline.drafters", whose entries
name such a function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from paceline.core import Drafter, TargetInfo
from paceline.errors import ConfigError
from paceline.mixture import Mixture
from paceline.plugins import Option, Plugins

PLUS = re.compile(r"\+(?![0-9])")
"""Between the parts of a mixture; the plus of a number such as 1e+3 is none."""

_DRAFTERS = Plugins("drafter", __name__, "build")


def names() -> list[str]:
    """All drafters that can be loaded, sorted: those in this folder and those of other packages."""
    return _DRAFTERS.names()


def options(name: str) -> Mapping[str, Option]:
    """The drafter's options and their defaults. Raises ConfigError if there is no such drafter."""
    return _DRAFTERS.options(name)


def load(spec: str, info: TargetInfo) -> Drafter:
    """The drafter that `spec` describes: a name, or name:option=value,option=value; several with "+" between
    them are mixed in one tree.

    Raises ConfigError for an unknown name or option, or a value of the wrong kind, saying what is legal;
    and what the drafter itself raises for a value out of range.
    """
    parts = PLUS.split(spec)
    if len(parts) > 1:
        if len(set(parts)) < len(parts):
            raise ConfigError(f"drafter {spec}: a mixture has different parts")
        return Mixture({part: load(part, info) for part in parts})
    name, chosen = _DRAFTERS.parse(spec)
    drafter: Drafter = _DRAFTERS.find(name)(info, **chosen)
    return drafter
