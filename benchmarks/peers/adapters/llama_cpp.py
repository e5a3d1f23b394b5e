"""llama.cpp through llama-cpp-python, on the model's own file and requantised to q8_0."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from benchmarks.peers.contender import Contender, Launch, Plan
from benchmarks.peers.environment import environment, made, weights_folder

ENGINE = "llama.cpp"
VERSION = "0.3.36"
LOOKUPS = ("3,4", "3,8", "2,10")
"""Longest n-gram and drafted tokens that prompt lookup is tried with; the last is the binding's default."""


def pythons(plan: Plan) -> tuple[Path, ...]:
    """Pythons that have llama-cpp-python: those given, or one built for this processor.

    Its kernels for AMX crash on the first pass over repacked weights (docs/log.md), so a processor that has
    AMX gets a build without them.
    """
    if plan.llama_pythons:
        return plan.llama_pythons
    amx = Path("/proc/cpuinfo").exists() and "amx_int8" in Path("/proc/cpuinfo").read_text()
    # One flag each: the build splits these arguments at every space, quoted or not.
    variables = (
        {"CMAKE_ARGS": " ".join(f"-DCMAKE_{x}_FLAGS=-mno-amx-int8" for x in ("C", "CXX"))} if amx else None
    )
    required = [f"llama-cpp-python=={VERSION}"]
    return (environment(plan, "llama_cpp", required, source=["llama-cpp-python"], variables=variables),)


def requantised(plan: Plan) -> Path:
    """The plan's model in q8_0. Raises PeerError."""
    words = (
        pythons(plan)[0],
        "-m",
        "benchmarks.peers.workers.requantise_llama_cpp",
        plan.model,
        plan.threads,
    )
    return made(plan, weights_folder(plan) / "q8_0.gguf", "llama_cpp", words)


def contenders(plan: Plan) -> Iterator[Contender]:
    found = pythons(plan)
    for weights, file in ((plan.own_weights, plan.model), ("q8_0", requantised(plan))):
        plain = {}
        for python, flash, repack in product(found, (False, True), (True, False)):
            said = [f"flash attention {'on' if flash else 'off'}", f"repacking {'on' if repack else 'off'}"]
            said += [python.parents[1].name] if len(found) > 1 else []
            settings = {**plan.common, "model": str(file), "flash_attention": flash, "repack": repack}
            plain[", ".join(said)] = Launch(python, "llama_cpp", {**settings, "lookup": ""})
        yield Contender(ENGINE, VERSION, weights, "plain", plain)
        lookups = {f"n-gram and draft {lookup}": {"lookup": lookup} for lookup in LOOKUPS}
        yield Contender(ENGINE, VERSION, weights, "prompt lookup", changes=lookups)
        yield Contender(
            ENGINE,
            VERSION,
            weights,
            "n-gram",
            error="llama-cpp-python has no binding for llama.cpp's n-gram speculation; "
            "a llama-server program (--llama-server) has it",
        )
