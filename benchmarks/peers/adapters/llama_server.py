"""Any llama-server program given by its path (--llama-server): llama.cpp's own, or a fork's such as
ik_llama.cpp's. Those that know --spec-type also run with each of llama.cpp's n-gram drafters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.adapters import llama_cpp
from benchmarks.peers.contender import Contender, Launch, PeerError, Plan

ENGINE = "llama-server"
VERSION = "as given"
SPECULATIVE = ("ngram-simple", "ngram-map-k", "ngram-mod")


def contenders(plan: Plan) -> Iterator[Contender]:
    if not plan.llama_servers:
        raise PeerError("no llama-server program was given (--llama-server PATH)")
    files = {plan.own_weights: plan.model}
    if "llama_cpp" in plan.chosen:
        files["q8_0"] = llama_cpp.requantised(plan)
    for program in plan.llama_servers:
        engine = f"{ENGINE} ({program.parent.name}/{program.name})"
        try:
            version, known = _ask(program, "--version"), _ask(program, "--help")
        except PeerError as error:
            yield Contender(engine, VERSION, None, None, error=str(error))
            continue
        shown = next((line for line in version.splitlines() if "version" in line.lower()), VERSION).strip()
        modes: dict[str, list[str]] = {"plain": []}
        modes |= {name: ["--spec-type", name] for name in SPECULATIVE if name in known}
        for weights, file in files.items():
            for mode, options in modes.items():
                settings = {**plan.common, "program": str(program), "model": str(file), "options": options}
                launch = Launch(Path(sys.executable), "llama_server", settings)
                yield Contender(engine, shown, weights, mode, {"": launch})


def _ask(program: Path, option: str) -> str:
    try:
        done = subprocess.run([program, option], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{program}: {error}") from None
    return done.stdout + done.stderr
