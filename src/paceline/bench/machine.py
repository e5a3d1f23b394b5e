"""What a result was measured on: goes with every result, for a speed without its machine says nothing."""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paceline.models.cache import sha256_of
from paceline.models.registry import resolve

PACKAGES = ("paceline", "numpy", "tokenizers")


def machine(isa: str, threads: int) -> dict[str, Any]:
    """The processor, its cores, the instruction set and threads in use, and the system."""
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "isa": isa,
        "threads": threads,
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the speed depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def provenance(model: str) -> dict[str, Any]:
    """The very model file, or all weights of a folder, by their checksum, and when it was measured."""
    path = resolve(model)
    checksums = [sha256_of(file) for file in sorted(path.glob("*.safetensors"))] if path.is_dir() else []
    checksum = hashlib.sha256("".join(checksums).encode()).hexdigest() if checksums else sha256_of(path)
    return {"model_sha256": checksum, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor as its maker calls it, as far as the system tells."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
