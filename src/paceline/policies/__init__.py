"""Finding policies: one file each, the file name is the name that users type.

A policy's file has a function `build(cost, *, option=default, ...)`; its keyword-only parameters are the
policy's options. Packages add policies through the entry point group "paceline.policies", whose entries
name such a function.
"""

from __future__ import annotations

from collections.abc import Mapping

from paceline.core import Policy
from paceline.plugins import Option, Plugins
from paceline.policies._cost import PassCost as PassCost

_POLICIES = Plugins("policy", __name__, "build")


def names() -> list[str]:
    """All policies that can be loaded, sorted: those in this folder and those of other packages."""
    return _POLICIES.names()


def options(name: str) -> Mapping[str, Option]:
    """The policy's options and their defaults. Raises ConfigError if there is no such policy."""
    return _POLICIES.options(name)


def load(spec: str, cost: PassCost | None = None) -> Policy:
    """The policy that `spec` describes: a name, or name:option=value,option=value.

    cost: what the target's passes cost; by default a guess that is put right by the passes measured.

    Raises ConfigError for an unknown name or option, a value of the wrong kind or out of range.
    """
    name, chosen = _POLICIES.parse(spec)
    policy: Policy = _POLICIES.find(name)(cost or PassCost(), **chosen)
    return policy
