"""The architectures of trained drafters, one per file; the file's name is the architecture's.

A file has a function `build(teacher, *, option=default, ...)` that gives an `Architecture`; its keyword-only
parameters are the architecture's options. Packages add architectures through the entry point group
"paceline.train.architectures".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from paceline.plugins import Option, Plugins

if TYPE_CHECKING:
    from paceline.train.architectures._base import Architecture
    from paceline.train.teacher import Teacher

_ARCHITECTURES = Plugins("architecture", __name__, "build")


def names() -> list[str]:
    """All architectures, sorted."""
    return _ARCHITECTURES.names()


def options(name: str) -> Mapping[str, Option]:
    """The architecture's options and their defaults. Raises ConfigError if there is none of this name."""
    return _ARCHITECTURES.options(name)


def load(spec: str, teacher: Teacher) -> Architecture:
    """A fresh drafter of the architecture that `spec` names, with options as in name:option=value; its
    weights are drawn from PyTorch's own generator.

    Raises ConfigError for an unknown name or option, or a value out of range.
    """
    name, chosen = _ARCHITECTURES.parse(spec)
    architecture: Architecture = _ARCHITECTURES.find(name)(teacher, **chosen)
    return architecture
