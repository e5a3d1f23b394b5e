"""OpenVINO GenAI; its model files are exported by optimum-intel, which needs transformers 4."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.peers.contender import Contender, Launch, PeerError, Plan
from benchmarks.peers.environment import (
    DEQUANTISING,
    MISFITS,
    TORCH,
    environment,
    made,
    safetensors,
    weights_folder,
)

ENGINE = "OpenVINO GenAI"
VERSION = "2026.4.1"
FORMATS = {"int8": (), "int4": ("--group-size", "64")}
"""Options of the export beside the format. Groups of 64: the default of 128 does not fit a width of 576."""
LOOKUPS = (4, 8)
BACKENDS = ("PA", "SDPA")


def contenders(plan: Plan) -> Iterator[Contender]:
    required = [f"openvino-genai=={VERSION}.*", "optimum-intel==2.2.*", "nncf", "transformers==4.57.*"]
    python = environment(plan, "openvino", [*required, TORCH, *DEQUANTISING], remove=MISFITS)
    model = safetensors(plan, "openvino", python)
    for weights, options in FORMATS.items():
        words = [python.with_name("optimum-cli"), "export", "openvino", "--model", model]
        words += ["--task", "text-generation-with-past", "--weight-format", weights, *options]
        try:
            folder = made(plan, weights_folder(plan) / f"openvino-{weights}", "openvino", words)
        except PeerError as error:
            yield Contender(ENGINE, VERSION, weights, None, error=str(error))
            continue
        settings = {**plan.common, "model": str(folder)}
        plain = {
            f"attention {backend}": Launch(python, "openvino", {**settings, "backend": backend, "lookup": {}})
            for backend in BACKENDS
        }
        yield Contender(ENGINE, VERSION, weights, "plain", plain)
        lookups = {}
        for tokens in LOOKUPS:
            lookup = {"num_assistant_tokens": tokens, "max_ngram_size": 3}
            lookups[f"n-gram 3, draft {tokens}"] = Launch(
                python, "openvino", {**settings, "backend": "PA", "lookup": lookup}
            )
        yield Contender(ENGINE, VERSION, weights, "prompt lookup", lookups)
