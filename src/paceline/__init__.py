"""Paceline: exact speculative decoding for language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.engine import Engine
    from paceline.errors import (
        CapacityError,
        ConfigError,
        IncompatibleDrafter,
        ModelFileError,
        PacelineError,
        QueueFull,
    )
    from paceline.grammar import Grammar
    from paceline.hf import accelerate
    from paceline.results import Completion, Event, Load, Stats, Timings, TokenLogprob, TokenLogprobs
    from paceline.sampling import SamplingParams

__all__ = [
    "CapacityError",
    "Completion",
    "ConfigError",
    "Engine",
    "Event",
    "Grammar",
    "IncompatibleDrafter",
    "Load",
    "ModelFileError",
    "PacelineError",
    "QueueFull",
    "SamplingParams",
    "Stats",
    "Timings",
    "TokenLogprob",
    "TokenLogprobs",
    "accelerate",
]

_HOMES = {
    "CapacityError": "errors",
    "Completion": "results",
    "ConfigError": "errors",
    "Engine": "engine",
    "Event": "results",
    "Grammar": "grammar",
    "IncompatibleDrafter": "errors",
    "Load": "results",
    "ModelFileError": "errors",
    "PacelineError": "errors",
    "QueueFull": "errors",
    "SamplingParams": "sampling",
    "Stats": "results",
    "Timings": "results",
    "TokenLogprob": "results",
    "TokenLogprobs": "results",
    "accelerate": "hf",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import paceline` costs next to nothing."""
    home = "hf" if name == "hf" else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'paceline' has no attribute {name!r}")
    try:
        module = import_module(f"paceline.{home}")
    except ModuleNotFoundError as missing:
        if missing.name in ("torch", "transformers"):
            raise ImportError(f"paceline.{name} needs PyTorch: pip install 'paceline[torch]'") from missing
        raise
    return module if name == home else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
