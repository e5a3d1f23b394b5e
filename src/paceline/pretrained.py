"""From a model's name or file to a target and its tokenizer."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.models.cache import cache_dir
from paceline.models.registry import resolve
from paceline.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from paceline.policies import PassCost
    from paceline.targets.native import NativeTarget


def load_model(
    model: str | Path,
    *,
    threads: int | None = None,
    cache_tokens: int | None = None,
    context: int | None = None,
) -> tuple[NativeTarget, Tokenizer]:
    """The native target and the tokenizer of a model, fetched first if need be.

    model: a known name or the path of a GGUF file; the other options are NativeTarget.load's. Raises
    ConfigError and ModelFileError.
    """
    from paceline.targets.native import NativeTarget

    target = NativeTarget.load(resolve(model), threads=threads, cache_tokens=cache_tokens, context=context)
    return target, Tokenizer.from_json(target.tokenizer_json)


def pass_cost(target: NativeTarget) -> PassCost:
    """What the target's passes cost: measured at the first start on this machine, and kept on disk."""
    from paceline.policies import PassCost
    from paceline.policies._profile import kept_profile

    model = target.model
    key = (platform.node(), platform.machine(), model.isa, str(model.threads), target.info.name)
    return PassCost(kept_profile(target, cache_dir() / "passes", (*key, str(target.weight_bytes))))
