"""Hugging Face transformers with PyTorch in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.peers.contender import Contender, Launch, Plan
from benchmarks.peers.environment import DEQUANTISING, TORCH, environment, safetensors

ENGINE = "transformers"
VERSION = "5.23.0"
LOOKUPS = (4, 10)
"""Tokens that prompt lookup drafts; transformers has no default, its documentation shows 3 to 10."""


def contenders(plan: Plan) -> Iterator[Contender]:
    python = environment(plan, "transformers", [f"transformers=={VERSION}", TORCH, *DEQUANTISING])
    model = safetensors(plan, "transformers", python)

    def launch(assistant: str | None = None, **options: Any) -> Launch:
        own = {"model": str(model), "dtype": "bfloat16", "options": options, "assistant": assistant}
        return Launch(python, "transformers", {**plan.common, **own})

    yield Contender(ENGINE, VERSION, "bf16", "plain", {"": launch()})
    lookups = {f"draft {count}": launch(prompt_lookup_num_tokens=count) for count in LOOKUPS}
    yield Contender(ENGINE, VERSION, "bf16", "prompt lookup", lookups)
    if plan.assistant:
        yield Contender(ENGINE, VERSION, "bf16", "assisted", {"": launch(str(plan.assistant))})
    else:
        reason = "no smaller model with the same tokenizer was given (--assistant)"
        yield Contender(ENGINE, VERSION, "bf16", "assisted", error=reason)
