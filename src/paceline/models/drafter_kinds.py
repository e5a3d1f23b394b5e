"""Which drafter runs what is in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from paceline.models.dflash2_folder import ARCHITECTURE as DFLASH2
from paceline.models.dflash_folder import is_dflash
from paceline.models.drafter_folder import CONFIG, read_json
from paceline.models.dspark_folder import is_dspark
from paceline.models.eagle3_folder import is_peagle
from paceline.models.heads_folder import KINDS as HEADS
from paceline.models.llama_folder import CLASS as LLAMA


def _says(key: str, value: object, held: Mapping[str, Any]) -> bool:
    return bool(held.get(key) == value)


_SIGNS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    **{kind: partial(_says, "model_type", kind) for kind in (*HEADS, "exit", "pads", "redrafter")},
    "draft": partial(_says, "architectures", [LLAMA]),
    "dspark": is_dspark,
    "dflash2": partial(_says, "architectures", [DFLASH2]),
    "dflash": is_dflash,
    "mtp": partial(_says, "speculators_model_type", "mtp"),
    "peagle": is_peagle,
}


def kind_of(folder: Path) -> str:
    """The name of the drafter for a folder: what its config.json is a sign of, else "eagle3", whose folders
    say least. Raises ModelFileError if there is no config.json."""
    held = read_json(folder / CONFIG)
    return next((kind for kind, is_it in _SIGNS.items() if is_it(held)), "eagle3")
