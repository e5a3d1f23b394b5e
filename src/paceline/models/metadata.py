"""Typed, bounded access to the key/value part of a model file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from paceline.errors import ModelFileError


class Metadata:
    """The key/value pairs of a GGUF file, read with the type and range that the caller expects.

    Values are int, float, bool, str, a NumPy array of numbers, or a list of str. Every method raises
    ModelFileError naming the key, what was found and what was expected; a missing key is an error unless
    a default is given.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def equals(self, key: str, allowed: tuple[object, ...]) -> bool:
        """Whether the value is a scalar among `allowed`."""
        value = self._values[key]
        return isinstance(value, int | float | str) and value in allowed

    def shown(self, key: str) -> str:
        """The value in few characters, for error messages."""
        value = self._values[key]
        if isinstance(value, np.ndarray | list):
            kind = "strings" if isinstance(value, list) else str(value.dtype)
            return f"a list of {len(value)} {kind}"
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in [low, high]."""
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite float in [low, high]."""
        value = self._values.get(key, default)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is None or not good or not low <= value <= high:
            raise self._wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A boolean."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list of strings")
        return value

    def numbers(self, key: str, count: int, kind: Literal["integers", "floats"]) -> list[Any]:
        """A list of `count` finite numbers."""
        value = self._values.get(key)
        wanted = "iu" if kind == "integers" else "f"
        if not isinstance(value, np.ndarray) or value.shape != (count,) or value.dtype.kind not in wanted:
            raise self._wrong(key, f"a list of {count} {kind}")
        if not np.isfinite(value).all():
            raise ModelFileError(f"{key}: holds a number that is not finite")
        items: list[Any] = value.tolist()
        return items

    def _wrong(self, key: str, expected: str) -> ModelFileError:
        if key not in self._values:
            return ModelFileError(f"{key}: missing, expected {expected}")
        return ModelFileError(f"{key}: found {self.shown(key)}, expected {expected}")
