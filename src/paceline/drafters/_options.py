"""Options that several drafters have."""

from __future__ import annotations

from paceline.core import Drawn
from paceline.errors import ConfigError

MAX_WIDTH = 64

_KINDS = {"iid": Drawn.IID, "without_replacement": Drawn.WITHOUT_REPLACEMENT}


def parse_widths(drafter: str, text: str) -> list[int]:
    """Children of a node on each level: "1x1x1" is a chain of three tokens, "2x2x1" a tree.

    Raises ConfigError naming the drafter.
    """
    parts = text.split("x")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MAX_WIDTH for part in parts):
        raise ConfigError(
            f"{drafter}:widths must be numbers from 1 to {MAX_WIDTH} with x between, got {text!r}"
        )
    return [int(part) for part in parts]


def parse_drawn(drafter: str, text: str) -> Drawn:
    """How siblings are drawn: "iid" or "without_replacement". Raises ConfigError naming the drafter."""
    if text not in _KINDS:
        raise ConfigError(f"{drafter}:drawn must be {' or '.join(_KINDS)}, got {text!r}")
    return _KINDS[text]


def check_probability(drafter: str, option: str, value: float) -> None:
    """Raise ConfigError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{drafter}:{option} must be at least 0, below 1, got {value}")
