"""Each rival's own environment below build/peers/, and its model files; made once, then found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.contender import PeerError, Plan

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "peers"
LOGS = BUILD / "logs"
TORCH = "torch==2.13.0"
"""Exactly: with a range, pip may take a build for GPUs that is several gigabytes larger."""
DEQUANTISING = ("gguf", "accelerate")
"""What transformers needs to read a GGUF file, for `safetensors`."""
MISFITS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that others pull in and import if they are there, and whose builds for GPUs then fail to load."""


def environment(
    plan: Plan,
    name: str,
    requirements: Sequence[str],
    *,
    remove: Sequence[str] = (),
    without_dependencies: Sequence[str] = (),
    source: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Path:
    """The Python of the environment `name`, made now unless it is there as asked for.

    remove: packages uninstalled afterwards; without_dependencies: requirements installed afterwards, alone;
    source: packages built from source; variables: of the environment that pip runs in. Raises PeerError with
    pip's last words.
    """
    folder = BUILD / name
    python = folder / "bin" / "python"
    asked = json.dumps([requirements, remove, without_dependencies, source, variables])
    stamp = folder / f"made-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    if stamp.exists():
        return python
    plan.note(f"{name}: installing {', '.join([*requirements, *without_dependencies])}")
    venv.create(folder, clear=True, with_pip=True)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    built = [f"--no-binary={package}" for package in source]
    command(name, [*pip, "install", *built, *requirements], variables)
    if remove:
        command(name, [*pip, "uninstall", "--yes", *remove])
    if without_dependencies:
        command(name, [*pip, "install", "--no-deps", *without_dependencies])
    stamp.touch()
    return python


def command(name: str, words: Sequence[object], variables: Mapping[str, str] | None = None) -> None:
    """Run a command from the repository's root; what it prints goes to build/peers/logs/NAME.log.

    Raises PeerError with the last line it printed.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            list(map(str, words)),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, **(variables or {})},
        )
    if done.returncode:
        shown = " ".join(Path(str(word)).name for word in words[:4])
        raise PeerError(f"{shown} ... ended with {done.returncode}: {last_words(log)}")


def last_words(log: Path) -> str:
    """The last line of a log that says what went wrong, as far as one can tell."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it printed nothing"])[-1][:300]


def made(plan: Plan, target: Path, name: str, words: Sequence[object]) -> Path:
    """The file or folder `target`, made now by a command whose last word will be a place to put it, unless
    it is there: it appears whole or not at all. Raises PeerError."""
    if not target.exists():
        plan.note(f"{name}: making {target.relative_to(BUILD)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
        command(name, [*words, partial])
        partial.rename(target)
    return target


def weights_folder(plan: Plan) -> Path:
    """Where model files made from the plan's model lie: another folder when the file changes."""
    status = plan.model.stat()
    identity = f"{plan.model.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    return BUILD / "weights" / f"{plan.model.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def safetensors(plan: Plan, name: str, python: Path) -> Path:
    """The plan's model dequantised, in the Hugging Face format, written by the transformers of `python`
    (each version writes its tokenizer in its own form). Raises PeerError."""
    words = (python, "-m", "benchmarks.peers.workers.dequantise", plan.model)
    return made(plan, weights_folder(plan) / f"safetensors-{name}", name, words)
