"""From a model's name, file or folder to a target and its tokenizer."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.errors import ConfigError
from paceline.models.cache import cache_dir
from paceline.models.registry import resolve
from paceline.models.tokenizer import Tokenizer
from paceline.targets._options import refuse_device, refuse_rows

if TYPE_CHECKING:
    from paceline.core import Target
    from paceline.policies import PassCost
    from paceline.targets.native import NativeTarget
    from paceline.targets.torch import TorchTarget
    from paceline.trained.dflash import NativeDFlash
    from paceline.trained.eagle3 import NativeEagle3
    from paceline.trained.heads import NativeHeads


def load_model(
    model: str | Path,
    *,
    threads: int | None = None,
    cache_tokens: int | None = None,
    context: int | None = None,
    rows: int | None = None,
    device: str | None = None,
) -> tuple[NativeTarget | TorchTarget, Tokenizer]:
    """The target and the tokenizer of a model, fetched first if need be.

    model: a known name or the path of a GGUF file, for the native target; a folder with safetensors or a
    name of the Hugging Face hub, such as "org/name", for the PyTorch target. The other options are those of
    NativeTarget.load and TorchTarget; `rows` is of the latter only, and `device` says where PyTorch runs it:
    None for a GPU if there is one. Raises ConfigError and ModelFileError.
    """
    path = resolve(model)
    options: dict[str, Any] = {"threads": threads, "cache_tokens": cache_tokens, "context": context}
    hub = _on_hub(path)
    if path.is_dir() or hub:
        if find_spec("torch") is None or find_spec("transformers") is None:
            what = "a name of the Hugging Face hub, for there is no such file," if hub else "a folder"
            raise ConfigError(f"{model}: {what} needs PyTorch: pip install 'paceline[torch]'")
        from paceline.targets.torch_folder import fetch, load_folder

        return load_folder(fetch(str(model)) if hub else path, rows=rows, device=device, **options)
    refuse_rows(model, rows)
    refuse_device(model, device)
    from paceline.targets.native import NativeTarget

    target = NativeTarget.load(path, **options)
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


def offers(target: Target, tokenizer: Any) -> dict[str, Any]:
    """What drafters may be given beside the target's `info`: see `paceline.drafters.load`. A model that is
    loaded to draft gets as many tokens of cache, and unless told otherwise the target's threads."""

    def load(
        model: str, *, threads: int | None = None, device: str | None = None
    ) -> tuple[NativeTarget | TorchTarget, Tokenizer]:
        path = resolve(model)
        if threads is not None and (path.is_dir() or _on_hub(path)):
            raise ConfigError(
                f"{model} runs on PyTorch, whose threads are the whole process's; threads={threads}"
            )
        threads = threads or getattr(target, "threads", None)
        return load_model(model, threads=threads, cache_tokens=target.info.cache_tokens, device=device)

    embedding, head = (getattr(target, name, None) for name in ("embedding", "head"))
    layers = sum(tap.startswith("hidden.") for tap in target.info.taps) - 1  # the first are the embeddings

    def load_drafter(folder: str) -> NativeEagle3:
        from paceline.models.drafter_folder import read_drafter
        from paceline.trained.eagle3 import NativeEagle3

        assert embedding is not None, "it is not offered then"
        info = target.info
        return NativeEagle3(
            read_drafter(Path(folder)),
            embedding(),
            layers,
            threads=getattr(target, "threads", 1),
            cache_tokens=info.cache_tokens,
            max_positions=info.max_positions,
        )

    def load_dflash(folder: str) -> NativeDFlash:
        from paceline.models.dflash_folder import read_dflash
        from paceline.trained.dflash import NativeDFlash

        assert embedding is not None, "it is not offered then"
        assert head is not None, "it is not offered then"
        cache_tokens = target.info.cache_tokens
        return NativeDFlash(read_dflash(Path(folder)), embedding(), head(), layers, cache_tokens=cache_tokens)

    def load_heads(kind: str, folder: str) -> NativeHeads:
        from paceline.models.heads_folder import read_heads
        from paceline.trained.heads import NativeHeads

        assert embedding is not None, "they are not offered then"
        return NativeHeads(read_heads(Path(folder), kind), embedding())

    return {
        "sketch": getattr(target, "sketch", None),
        "tokenizer": tokenizer,
        "load_model": load,
        "load_drafter": None if embedding is None else load_drafter,
        "load_dflash": None if embedding is None or head is None else load_dflash,
        "load_heads": None if embedding is None else load_heads,
    }
