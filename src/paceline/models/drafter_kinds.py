"""Which drafter runs what is in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from paceline.models.dflash2_folder import is_dflash2
from paceline.models.dflash_folder import is_dflash
from paceline.models.drafter_folder import CONFIG, read_json
from paceline.models.dspark_folder import is_dspark
from paceline.models.eagle3_folder import is_peagle
from paceline.models.exit_folder import holds_exits
from paceline.models.heads_folder import KINDS as HEADS
from paceline.models.llama_folder import holds_llama
from paceline.models.mtp_folder import is_mtp
from paceline.models.pads_folder import holds_pads
from paceline.models.redrafter_folder import holds_redrafter


def _says(kind: str, folder: Path) -> bool:
    return read_json(folder / CONFIG).get("model_type") == kind


_SIGNS: Mapping[str, Callable[[Path], bool]] = {
    **{kind: partial(_says, kind) for kind in HEADS},
    "exit": holds_exits,
    "pads": holds_pads,
    "redrafter": holds_redrafter,
    "draft": holds_llama,
    "dspark": is_dspark,
    "dflash2": is_dflash2,
    "dflash": is_dflash,
    "mtp": is_mtp,
    "peagle": is_peagle,
}


def kind_of(folder: Path) -> str:
    """The name of the drafter for a folder: what its config.json is a sign of, else "eagle3", whose folders
    say least. Raises ModelFileError if there is no config.json."""
    return next((kind for kind, holds in _SIGNS.items() if holds(folder)), "eagle3")
