"""Finding drafters: one file each, the file name is the name that users type.

A drafter's file has a function `build(info, ..., *, option=default, ...)`; its keyword-only parameters are
the drafter's options, its other parameters what it needs beside the target's `info`, or could use if they
have a default: see `load`. Packages
add drafters through the entry point group "paceline.drafters", whose entries name such a function.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from paceline.core import Drafter, TargetInfo
from paceline.errors import ConfigError, IncompatibleDrafter
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


def load(spec: str, info: TargetInfo, **offered: Any) -> Drafter:
    """The drafter that `spec` describes: a name, or name:option=value,option=value; several with "+" between
    them are mixed in one tree.

    offered: what a drafter may be given beside the target's `info`, where its `build` has a parameter of that
    name. `paceline.pretrained.offers` makes it: `sketch`, cheaper passes of the target
    (`paceline.core.Sketch`); `tokenizer`, the target's; `load_model`, which gets another model and its
    tokenizer by name; `load_trained`, which gets a drafter that was trained for the target from its folder.
    None offers nothing.

    Raises ConfigError for an unknown name or option, or a value of the wrong kind, saying what is legal;
    IncompatibleDrafter for a drafter that needs what is not offered; and what the drafter itself raises for
    a value out of range.
    """
    parts = PLUS.split(spec)
    if len(parts) > 1:
        if len(set(parts)) < len(parts):
            raise ConfigError(f"drafter {spec}: a mixture has different parts")
        return Mixture({part: load(part, info, **offered) for part in parts})
    name, chosen = _DRAFTERS.parse(spec)
    build = _DRAFTERS.find(name)
    _, *needed = [p for p in inspect.signature(build).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    for need in needed:
        if offered.get(need.name) is None and need.default is need.empty:
            raise IncompatibleDrafter(f"drafter {name} needs a {need.name}, and {info.name} offers none")
    drafter: Drafter = build(info, *(offered.get(need.name) for need in needed), **chosen)
    return drafter
