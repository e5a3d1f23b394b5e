"""What exports of trained drafters have in common: how a folder is written, and the command that serves it.

Every export is read back and compared, see the files named after each kind.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from paceline.errors import ModelFileError
from paceline.models.cache import write_atomically
from paceline.models.drafter_folder import CONFIG, TENSORS
from paceline.models.safetensors_file import write_safetensors

ENGINES = ("vllm", "sglang")
TOLERANCE = 1e-5
"""Largest difference between the logits of a drafter and of what its export reads back as."""


class Exported(NamedTuple):
    """What was written.

    folder      where
    config      of its config.json
    command     that serves the target with it
    difference  between the logits of the drafter and of the folder read back
    """

    folder: Path
    config: dict[str, Any]
    command: str
    difference: float


def write_folder(folder: Path, config: dict[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a drafter's folder, config.json last. Raises ModelFileError."""
    try:
        write_safetensors(folder / TENSORS, tensors)
        with write_atomically(folder / CONFIG) as file:
            file.write(json.dumps(config, indent=2).encode() + b"\n")
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be written: {error.strerror}") from None


def command_for(to: str, method: str, target: str, folder: Path, draft_tokens: int, **more: object) -> str:
    """What serves the target with the drafter in a folder. method, more: as vLLM calls it, and its further
    settings."""
    if to == "vllm":
        settings = {"method": method, "model": str(folder), "num_speculative_tokens": draft_tokens, **more}
        words = ["vllm", "serve", target, "--speculative-config", json.dumps(settings)]
    else:
        words = ["python", "-m", "sglang.launch_server", "--model-path", target]
        words += ["--speculative-algorithm", method.upper(), "--speculative-draft-model-path", str(folder)]
        if method == "eagle3":  # a block is drafted in one step
            words += ["--speculative-num-steps", str(draft_tokens), "--speculative-eagle-topk", "1"]
        words += ["--speculative-num-draft-tokens", str(draft_tokens + 1)]
    return shlex.join(words)
