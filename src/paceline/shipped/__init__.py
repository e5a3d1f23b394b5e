"""Trained drafters that come with the package, a folder each: config.json, model.safetensors, and a card."""

from __future__ import annotations

import json
from pathlib import Path

from paceline.core import TargetInfo


def folders() -> list[Path]:
    """All of them, sorted."""
    return sorted(card.parent for card in Path(__file__).parent.glob("*/card.json"))


def find(info: TargetInfo) -> Path | None:
    """The folder of the drafter that was trained for this model; None if there is none.

    A model is told by its name, its tokenizer and its number of layers, so that a drafter serves a model's
    files in all weight formats.
    """
    for folder in folders():
        card = json.loads((folder / "card.json").read_bytes())
        if (card["target_name"], card["vocabulary"], card["layers"]) == (
            info.name,
            info.vocabulary,
            info.layers,
        ):
            return folder
    return None
