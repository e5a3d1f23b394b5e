"""Finding rules: one file each, the file name is the name that users type.

A rule's file has a function of the same name, made a rule by `paceline.verify.rule`; its keyword-only
parameters are the rule's options. Packages add rules through the entry point group "paceline.rules".
"""

from __future__ import annotations

from collections.abc import Mapping

from paceline.core import Promise, Rule
from paceline.errors import ConfigError
from paceline.plugins import Option, Plugins

_RULES = Plugins("rule", __name__, None)


def names() -> list[str]:
    """All rules that can be loaded, sorted: those in this folder and those of other packages."""
    return _RULES.names()


def options(name: str) -> Mapping[str, Option]:
    """The rule's options and their defaults. Raises ConfigError if there is no such rule."""
    return _RULES.options(name)


def load(spec: str, *, allow_lossy: bool = False) -> Rule:
    """The rule that `spec` describes: a name, or name:option=value,option=value.

    Raises ConfigError for an unknown name or option, a value of the wrong kind or out of range, and for a
    lossy rule unless it is allowed.
    """
    name, chosen = _RULES.parse(spec)
    rule: Rule = _RULES.find(name).with_options(**chosen)  # type: ignore[attr-defined]
    if rule.promise is Promise.LOSSY and not allow_lossy:
        raise ConfigError(
            f"rule {name} is lossy: answers would not be the target's own; allow it with --allow-lossy "
            f"(allow_lossy=True), or take one of {', '.join(exact())}"
        )
    return rule


def exact() -> list[str]:
    """All rules that promise something, sorted."""
    return [name for name in names() if _RULES.find(name).promise is not Promise.LOSSY]  # type: ignore[attr-defined]
