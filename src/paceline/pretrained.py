"""From a model's name, file or folder to a target and its tokenizer."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.models.cache import cache_dir
from paceline.models.llama_folder import read_llama
from paceline.models.registry import resolve
from paceline.models.tokenizer import Tokenizer
from paceline.targets._options import refuse_device, refuse_rows, within

if TYPE_CHECKING:
    from paceline.core import Target
    from paceline.policies import PassCost
    from paceline.targets.native import NativeTarget
    from paceline.targets.torch import TorchTarget


def load_model(
    model: str | Path,
    *,
    threads: int | None = None,
    cache_tokens: int | None = None,
    context: int | None = None,
    rows: int | None = None,
    device: str | None = None,
    layers: int | None = None,
) -> tuple[NativeTarget | TorchTarget, Tokenizer]:
    """The target and the tokenizer of a model, fetched first if need be.

    model: a known name or the path of a GGUF file, for the native target; a folder with safetensors or a
    name of the Hugging Face hub, such as "org/name", for the PyTorch target. The other options are those of
    NativeTarget.load and TorchTarget; `rows` is of the latter only, and `device` says where PyTorch runs it:
    None for a GPU if there is one. layers: of a GGUF file, the first ones that are run; None: all. Raises
    ConfigError and ModelFileError.
    """
    path = resolve(model)
    options: dict[str, Any] = {"threads": threads, "cache_tokens": cache_tokens, "context": context}
    hub = _on_hub(path)
    if path.is_dir() or hub:
        what = "a name of the Hugging Face hub, for there is no such file," if hub else "a folder"
        _need_pytorch(model, what)
        if layers is not None:
            raise ConfigError(f"{model}: {what} is run whole; {layers=} is for GGUF files and draft models")
        from paceline.targets.torch_folder import fetch, load_folder

        return load_folder(fetch(str(model)) if hub else path, rows=rows, device=device, **options)
    refuse_rows(model, rows)
    refuse_device(model, device)
    from paceline.targets.native import NativeTarget

    target = NativeTarget.load(path, layers=layers, **options)
    return target, Tokenizer.from_json(target.tokenizer_json)


def _on_hub(path: Path) -> bool:
    """Whether this is no file, but can be a name of the Hugging Face hub."""
    return not path.exists() and path.suffix != ".gguf" and len(path.parts) == 2 and not path.is_absolute()


def pass_cost(target: NativeTarget | TorchTarget) -> PassCost:
    """What the target's passes cost: measured at the first start on this machine, and kept on disk."""
    from paceline.policies import PassCost
    from paceline.policies._profile import kept_profile

    key = (platform.node(), platform.machine(), target.isa, str(target.threads), target.info.name)
    return PassCost(kept_profile(target, cache_dir() / "passes", (*key, str(target.weight_bytes))))


def draft_model(
    folder: Path,
    target: Any,
    *,
    threads: int | None = None,
    device: str | None = None,
    layers: int | None = None,
) -> NativeTarget | TorchTarget:
    """A draft model that was trained for the target, whose tokens it has: on PyTorch where the target is, or
    where a device is named, otherwise on the CPU kernels. layers: the first ones that are run; None: all.

    It has as much cache and as many threads as the target. Raises ModelFileError for the folder, ConfigError
    for an option, IncompatibleDrafter for a draft model of a target with other tokens.
    """
    from paceline.targets.native import NativeTarget
    from paceline.targets.weights import pack_llama

    weights = read_llama(folder)
    own, wanted = weights.config.vocab_size, target.info.vocab_size
    if own != wanted:
        raise IncompatibleDrafter(
            f"{folder}: the draft model was trained for a target of {own} tokens, this one has {wanted}"
        )
    cache_tokens = target.info.cache_tokens
    if device is None and isinstance(target, NativeTarget):
        packed = pack_llama(folder, weights)
        if layers is not None:
            packed = packed.first(layers)
        return NativeTarget(packed, threads=threads or target.threads, cache_tokens=cache_tokens)
    _need_pytorch(folder, "a draft model's folder beside such a target")
    if threads is not None:
        raise ConfigError(f"{folder} runs on PyTorch, whose threads are the whole process's; {threads=}")
    from paceline.targets.torch_folder import load_draft

    layers = within("layers", layers, weights.config.layers, 1, weights.config.layers)
    return load_draft(folder, layers, device=device, cache_tokens=cache_tokens)


def _need_pytorch(model: object, what: str) -> None:
    """Raise ConfigError if PyTorch is not there."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise ConfigError(f"{model}: {what} needs PyTorch: pip install 'paceline[torch]'")


def offers(target: Target, tokenizer: Any) -> dict[str, Any]:
    """What drafters may be given beside the target's `info`: see `paceline.drafters.load`. A model that is
    loaded to draft gets as many tokens of cache, and unless told otherwise the target's threads."""

    def load(
        model: str, *, threads: int | None = None, device: str | None = None, layers: int | None = None
    ) -> tuple[NativeTarget | TorchTarget, Tokenizer]:
        path = resolve(model)
        if path.is_dir() and not (path / "tokenizer.json").exists():
            draft = draft_model(path, target, threads=threads, device=device, layers=layers)
            return draft, tokenizer
        if threads is not None and (path.is_dir() or _on_hub(path)):
            raise ConfigError(
                f"{model} runs on PyTorch, whose threads are the whole process's; threads={threads}"
            )
        threads = threads or getattr(target, "threads", None)
        cache_tokens = target.info.cache_tokens
        return load_model(model, threads=threads, cache_tokens=cache_tokens, device=device, layers=layers)

    lender: Any = target if hasattr(target, "embedding") else None

    def load_from(drafter: str, folder: str) -> Any:
        from paceline.trained.load import load_trained

        return load_trained(drafter, Path(folder), lender)

    return {
        "sketch": getattr(target, "sketch", None) if target.info.layers else None,
        "tokenizer": tokenizer,
        "load_model": load,
        "load_trained": load_from if lender else None,
    }
