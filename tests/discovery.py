"""The rules, found by listing their folder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import paceline.rules
from paceline.core import Rule

RULES: dict[str, Rule] = {
    file.stem: getattr(import_module(f"paceline.rules.{file.stem}"), file.stem)
    for file in sorted(Path(paceline.rules.__file__).parent.glob("[!_]*.py"))
}
"""{name: rule}; the function has its file's name."""
