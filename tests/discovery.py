"""The rules, found by listing their folder."""

from __future__ import annotations

from paceline.core import Rule
from paceline.rules import load, names

RULES: dict[str, Rule] = {name: load(name, allow_lossy=True) for name in names()}
"""{name: rule}, with its own settings."""
