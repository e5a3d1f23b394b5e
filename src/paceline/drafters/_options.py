"""Options that several drafters have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Growth:
    """How drafted trees grow.

    widths           children of a node on each level
    drawn            how siblings are drawn under a rule that compares laws
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    frontier         under a coupled rule the nodes of a level that have children, the likeliest; 0: all
    """

    widths: Sequence[int]
    drawn: Drawn = Drawn.IID
    min_probability: float = 0.0
    frontier: int = 0


def parse_growth(drafter: str, widths: str, min_probability: float, drawn: str, frontier: int = 0) -> Growth:
    """The options of that name. Raises ConfigError naming the drafter for a value out of range."""
    levels, how = parse_widths(drafter, widths), parse_drawn(drafter, drawn)
    check_probability(drafter, "min_probability", min_probability)
    if not 0 <= frontier <= MAX_WIDTH:
        raise ConfigError(f"{drafter}:frontier must be from 0 to {MAX_WIDTH}, got {frontier}")
    return Growth(levels, how, min_probability, frontier)


def check_probability(drafter: str, option: str, value: float) -> None:
    """Raise ConfigError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{drafter}:{option} must be at least 0, below 1, got {value}")
