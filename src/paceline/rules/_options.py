"""Ranges of the rules' options."""

from __future__ import annotations

from collections.abc import Callable

from paceline.errors import ConfigError


def ranges(rule: str, **allowed: tuple[float, float]) -> Callable[..., None]:
    """A check of a rule's options: {option: (lowest, highest)}. It raises ConfigError for a value outside."""

    def check(**chosen: float) -> None:
        for option, value in chosen.items():
            low, high = allowed[option]
            if not low <= value <= high:
                raise ConfigError(f"{rule}:{option} must be from {low:g} to {high:g}, got {value}")

    return check
