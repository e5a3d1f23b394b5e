"""The targets that the contract suite is run over. A backend adds its factory here, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from paceline.core import Target
from paceline.targets.native import NativeTarget
from paceline.targets.table import TableTarget
from tests.native.models import random_weights


def table(cache_tokens: int) -> Target:
    return TableTarget(12, cache_tokens=cache_tokens)


def native(cache_tokens: int) -> Target:
    return NativeTarget(random_weights(), threads=1, cache_tokens=cache_tokens)


TARGETS: dict[str, Callable[[int], Target]] = {"native": native, "table": table}
"""{name: factory}; a factory takes the size of the cache in tokens and gives a fresh target."""
