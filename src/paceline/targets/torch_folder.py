"""From a model's folder, or its name on the Hugging Face hub, to a target and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from paceline.errors import ConfigError, ModelFileError
from paceline.models.folder import read_folder_tokenizer
from paceline.models.tokenizer import Tokenizer
from paceline.models.vocabulary import fingerprint
from paceline.targets._options import within
from paceline.targets.torch import TorchTarget

FILES = ("*.json", "*.safetensors", "*.jinja")


def load_folder(
    folder: Path, *, threads: int | None = None, device: str | None = None, **options: Any
) -> tuple[TorchTarget, Tokenizer]:
    """The target and tokenizer of a folder with config.json, *.safetensors and tokenizer.json, in the dtype
    that the folder says.

    threads: of the whole process, None = as PyTorch sees fit; device: such as cpu or cuda:1, None = a GPU if
    there is one; options: those of TorchTarget. Raises
    ModelFileError for the folder, ConfigError for an option or a model that cannot be served. Code in the
    folder is not run.
    """
    if threads is not None:
        torch.set_num_threads(within("threads", threads, threads, 1, 256))
    where = _device(device)
    tokenizer = Tokenizer(read_folder_tokenizer(folder))
    target = _load(folder, where, {}, vocabulary=fingerprint(tokenizer.to_json()), **options)
    return target, tokenizer


def load_draft(folder: Path, layers: int, *, device: str | None = None, **options: Any) -> TorchTarget:
    """The target of a folder without a tokenizer, with its first layers alone. Otherwise as `load_folder`."""
    return _load(folder, _device(device), {"num_hidden_layers": layers}, vocabulary="", **options)


def _load(folder: Path, where: str, changes: dict[str, Any], **options: Any) -> TorchTarget:
    """changes: of what the folder's config.json says."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **changes,
        )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()
        raise ModelFileError(f"{folder}: {reason[0] if reason else type(error).__name__}") from None
    return TorchTarget(model.to(where).eval(), **options)


def _device(name: str | None) -> str:
    """The device of this name. Raises ConfigError if there is none."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    found = [] if kind is None else [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())]
    if name is None:
        return found[0] if found else "cpu"
    if name not in ("cpu", *found):
        raise ConfigError(f"there is no device {name!r} here; there are {', '.join(('cpu', *found))}")
    return name


def fetch(name: str) -> Path:
    """The folder of a model of the hub, on this machine from now on. Raises ModelFileError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # of the network in all its forms
        raise ModelFileError(f"{name} cannot be fetched: {str(error).splitlines()[0]}") from None
