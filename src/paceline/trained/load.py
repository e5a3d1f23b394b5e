"""From the folder of a trained drafter to the model that drafts for a target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from paceline.core import TargetInfo
from paceline.errors import IncompatibleDrafter
from paceline.kernels.packing import Embedding
from paceline.models.dflash2_folder import read_dflash2
from paceline.models.dflash_folder import read_dflash
from paceline.models.dspark_folder import read_dspark
from paceline.models.eagle3_folder import Eagle3Weights, read_eagle3
from paceline.models.exit_folder import read_exits
from paceline.models.heads_folder import read_heads
from paceline.models.mtp_folder import read_mtp
from paceline.models.pads_folder import read_pads
from paceline.models.redrafter_folder import read_redrafter
from paceline.models.tasks_folder import read_tasks
from paceline.trained.dflash import NativeDFlash
from paceline.trained.dflash2 import NativeDFlash2
from paceline.trained.dspark import NativeDSpark
from paceline.trained.eagle3 import NativeEagle3
from paceline.trained.exits import NativeExits
from paceline.trained.heads import NativeHeads
from paceline.trained.mtp import NativeMtp
from paceline.trained.pads import NativePads
from paceline.trained.peagle import NativePEagle
from paceline.trained.redrafter import NativeRedrafter
from paceline.trained.tasks import NativeTasks

Trained = (
    NativeEagle3
    | NativeDFlash
    | NativeExits
    | NativeHeads
    | NativeMtp
    | NativePads
    | NativeRedrafter
    | NativeTasks
)


class Lender(Protocol):
    """A target that lends drafters its embeddings and its head, and runs on so many threads."""

    info: TargetInfo
    threads: int

    def embedding(self) -> Embedding:
        """The embeddings of the tokens."""
        ...

    def head(self) -> Embedding:
        """The head's rows."""
        ...


def load_trained(drafter: str, folder: Path, target: Lender) -> Trained:
    """The model in a folder, of the kind that the drafter of that name runs. It runs on the CPU kernels, as
    wide and as long as the target. Raises ModelFileError naming what is wrong with the folder,
    IncompatibleDrafter for a drafter that was not trained for such a target."""
    return _LOADERS[drafter](folder, target)


def _layers(target: Lender) -> int:
    return sum(tap.startswith("hidden.") for tap in target.info.taps) - 1  # the first are the embeddings


def _eagle3(folder: Path, target: Lender) -> NativeEagle3:
    return _on_kernels(read_eagle3(folder), target)


def _on_kernels(weights: Eagle3Weights, target: Lender) -> NativeEagle3:
    return NativeEagle3(
        weights,
        target.embedding(),
        _layers(target),
        threads=target.threads,
        cache_tokens=target.info.cache_tokens,
        max_positions=target.info.max_positions,
    )


def _peagle(folder: Path, target: Lender) -> NativePEagle:
    return NativePEagle(
        read_eagle3(folder, "peagle"),
        target.embedding(),
        _layers(target),
        threads=target.threads,
        cache_tokens=target.info.cache_tokens,
        max_positions=target.info.max_positions,
    )


def _mtp(folder: Path, target: Lender) -> NativeMtp:
    return NativeMtp(
        read_mtp(folder),
        target.embedding(),
        target.head(),
        threads=target.threads,
        cache_tokens=target.info.cache_tokens,
        max_positions=target.info.max_positions,
    )


def _tasks(folder: Path, target: Lender) -> NativeTasks:
    return NativeTasks(read_tasks(folder), target.embedding(), lambda weights: _on_kernels(weights, target))


def _dflash(folder: Path, target: Lender) -> NativeDFlash:
    weights, cache_tokens = read_dflash(folder), target.info.cache_tokens
    return NativeDFlash(
        weights, target.embedding(), target.head(), _layers(target), cache_tokens=cache_tokens
    )


def _dflash2(folder: Path, target: Lender) -> NativeDFlash2:
    weights, cache_tokens = read_dflash2(folder), target.info.cache_tokens
    return NativeDFlash2(
        weights, target.embedding(), target.head(), _layers(target), cache_tokens=cache_tokens
    )


def _dspark(folder: Path, target: Lender) -> NativeDSpark:
    weights, cache_tokens = read_dspark(folder), target.info.cache_tokens
    return NativeDSpark(
        weights, target.embedding(), target.head(), _layers(target), cache_tokens=cache_tokens
    )


def _exit(folder: Path, target: Lender) -> NativeExits:
    return NativeExits(read_exits(folder), target.head(), _layers(target))


def _medusa(folder: Path, target: Lender) -> NativeHeads:
    return NativeHeads(read_heads(folder, "medusa"), target.embedding(), threads=target.threads)


def _hydra(folder: Path, target: Lender) -> NativeHeads:
    return NativeHeads(read_heads(folder, "hydra"), target.embedding(), threads=target.threads)


def _redrafter(folder: Path, target: Lender) -> NativeRedrafter:
    return NativeRedrafter(read_redrafter(folder), target.embedding(), threads=target.threads)


def _pads(folder: Path, target: Lender) -> NativePads:
    look_ahead = getattr(target, "look_ahead", None)
    if look_ahead is None:
        raise IncompatibleDrafter(f"drafter pads needs a target that reads pads; {target.info.name} does not")
    return NativePads(read_pads(folder), target.head(), look_ahead)


_LOADERS: dict[str, Callable[[Path, Lender], Trained]] = {
    "eagle3": _eagle3,
    "peagle": _peagle,
    "mtp": _mtp,
    "dflash": _dflash,
    "dflash2": _dflash2,
    "dspark": _dspark,
    "exit": _exit,
    "medusa": _medusa,
    "hydra": _hydra,
    "pads": _pads,
    "redrafter": _redrafter,
    "tasks": _tasks,
}
