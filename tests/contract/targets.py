"""The targets that the contract suite is run over. A backend adds its factory here, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from paceline.core import Target
from paceline.targets.native import NativeTarget
from paceline.targets.table import TableTarget
from tests.native.models import random_weights


def table(cache_tokens: int) -> Target:
    return TableTarget(12, cache_tokens=cache_tokens)


def native(cache_tokens: int) -> Target:
    return NativeTarget(random_weights(), threads=1, cache_tokens=cache_tokens)


def torch(cache_tokens: int) -> Target:
    from paceline.targets.torch import TorchTarget
    from tests.torch.families import model

    return TorchTarget(model("llama"), cache_tokens=cache_tokens, rows=8)


TARGETS: dict[str, Callable[[int], Target]] = {"native": native, "table": table}
"""{name: factory}; a factory takes the size of the cache in tokens and gives a fresh target."""
if find_spec("torch") and find_spec("transformers"):
    TARGETS["torch"] = torch
