"""Options that several targets have."""

from __future__ import annotations

from paceline.errors import ConfigError


def within(name: str, value: int | None, default: int, low: int, high: int) -> int:
    """The value, or the default where there is none. Raises ConfigError unless low <= value <= high."""
    if value is None:
        return default
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, allowed: {low} to {high}")
    return value


def refuse_rows(model: object, rows: int | None) -> None:
    """Raises ConfigError if `rows` is set: this model is not run by the target that has it."""
    if rows is not None:
        raise ConfigError(f"rows is an option of the PyTorch target, which {model} does not use")


def refuse_device(model: object, device: str | None) -> None:
    """Raises ConfigError if `device` names another one than the CPU, on which the native target runs."""
    if device not in (None, "cpu"):
        raise ConfigError(f"device is {device}, but {model} runs on the native target: on the CPU")
