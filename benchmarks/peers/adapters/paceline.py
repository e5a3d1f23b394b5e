"""Paceline itself, on the model's own file and, beside llama.cpp, on its q8_0 file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.adapters import llama_cpp
from benchmarks.peers.contender import Contender, Launch, PeerError, Plan
from paceline.bench.machine import versions

ENGINE = "Paceline"
VERSION = versions()["paceline"]


def contenders(plan: Plan) -> Iterator[Contender]:
    yield from _modes(plan, plan.own_weights, plan.model)
    if "llama_cpp" in plan.chosen:
        try:
            yield from _modes(plan, "q8_0", llama_cpp.requantised(plan))
        except PeerError as error:
            yield Contender(ENGINE, VERSION, "q8_0", "plain", error=str(error))


def reference(plan: Plan) -> Launch:
    """Float32 arithmetic on the weights of the model's own file; only for logits."""
    settings = {"model": str(plan.model), "context": plan.context, "reference": True}
    return Launch(Path(sys.executable), "paceline", settings)


def _modes(plan: Plan, weights: str, file: Path) -> Iterator[Contender]:
    for drafter in ("none", *plan.drafters):
        settings = {**plan.common, "model": str(file), "drafter": drafter}
        launch = Launch(Path(sys.executable), "paceline", settings)
        mode = "plain" if drafter == "none" else drafter
        yield Contender(ENGINE, VERSION, weights, mode, {"": launch})
