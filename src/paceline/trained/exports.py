"""From the folder of a trained drafter, whichever it is, to the folder that another engine loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from paceline.errors import ConfigError
from paceline.models.dflash2_folder import read_dflash2
from paceline.models.dflash_folder import read_dflash
from paceline.models.drafter_kinds import kind_of
from paceline.models.dspark_folder import read_dspark
from paceline.models.eagle3_folder import read_eagle3
from paceline.models.heads_folder import read_heads
from paceline.models.llama_folder import read_llama
from paceline.models.mtp_folder import read_mtp
from paceline.trained.dflash2_export import export_dflash2
from paceline.trained.dflash_export import export_dflash
from paceline.trained.draft_export import export_draft
from paceline.trained.dspark_export import export_dspark
from paceline.trained.eagle3_export import export_eagle3
from paceline.trained.export import Exported
from paceline.trained.heads_export import export_heads
from paceline.trained.mtp_export import export_mtp

LAYERED = ("eagle3", "peagle")
"""Drafters whose folders need not say which hidden states they read."""

UNKNOWN = {
    "exit": "no other engine drafts with trained exits of its target",
    "pads": "no other engine reads pads in a model's passes",
    "redrafter": "neither vLLM nor SGLang loads recurrent drafters",
}
"""Why there is no export."""

_WRITERS: Mapping[str, Callable[[Path, str, Path, str], Exported]] = {
    "dflash": lambda folder, *how: export_dflash(read_dflash(folder), *how),
    "dflash2": lambda folder, *how: export_dflash2(read_dflash2(folder), *how),
    "draft": lambda folder, *how: export_draft(read_llama(folder), *how),
    "dspark": lambda folder, *how: export_dspark(read_dspark(folder), *how),
    "hydra": lambda folder, *how: export_heads(read_heads(folder), *how),
    "medusa": lambda folder, *how: export_heads(read_heads(folder), *how),
    "mtp": lambda folder, *how: export_mtp(read_mtp(folder), *how),
}


def export(folder: Path, to: str, out: Path, target: str, layers: int | None = None) -> Exported:
    """Write the drafter in a folder for an engine, one of `paceline.trained.export.ENGINES`, read it back and
    compare.

    target: the model that the engine serves with it; empty: the one the drafter was trained for. layers: how
    many the target has, for a drafter that does not say which hidden states it reads. Raises ConfigError,
    IncompatibleDrafter; ModelFileError if a folder cannot be read or written, or reads back as another
    drafter.
    """
    kind = kind_of(folder)
    if kind in UNKNOWN:
        raise ConfigError(UNKNOWN[kind])
    if kind in LAYERED:
        return export_eagle3(read_eagle3(folder, kind), to, out, target, layers)
    if layers is not None:
        raise ConfigError(f"--layers {layers} is for EAGLE-3 and P-EAGLE, {folder} is for {kind}")
    return _WRITERS[kind](folder, to, out, target)
