"""FlashSpec, a speculative engine around transformers; built for GPUs, runs on CPUs too."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.peers.contender import Contender, Launch, Plan
from benchmarks.peers.environment import DEQUANTISING, TORCH, environment, safetensors

ENGINE = "FlashSpec"
VERSION = "0.3.1"
GAMMAS = (4, 6)
"""Drafted tokens: its default, and what its authors found best for prompt lookup."""


def contenders(plan: Plan) -> Iterator[Contender]:
    python = environment(
        plan, "flashspec", [f"flashspec=={VERSION}", "transformers>=5,<6", TORCH, *DEQUANTISING]
    )
    model = safetensors(plan, "flashspec", python)
    settings = {**plan.common, "model": str(model), "dtype": "bfloat16"}
    variants = {
        f"gamma {gamma}": Launch(python, "flashspec", {**settings, "gamma": gamma}) for gamma in GAMMAS
    }
    yield Contender(ENGINE, VERSION, "bf16", "prompt lookup", variants)
