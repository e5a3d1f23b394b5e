"""The trained drafters that come with the package: whole, small, and told by their target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paceline import shipped
from paceline.core import TargetInfo
from paceline.drafters import load
from paceline.models.cache import sha256_of
from paceline.models.drafter_folder import read_drafter
from paceline.models.registry import MODELS
from paceline.targets.table import TableTarget

LARGEST = 20_000_000
"""Bytes of a folder."""


def target_of(folder: Path) -> TargetInfo:
    card = json.loads((folder / "card.json").read_bytes())
    return replace(
        TableTarget().info, name=card["target_name"], vocabulary=card["vocabulary"], layers=card["layers"]
    )


@pytest.mark.parametrize("folder", shipped.folders(), ids=lambda folder: folder.name)
def test_a_drafter_is_small_and_says_where_it_comes_from(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST
    assert {file.name for file in folder.iterdir()} == {
        "card.json",
        "card.md",
        "config.json",
        "model.safetensors",
    }
    card = json.loads((folder / "card.json").read_bytes())
    assert card["target_sha256"] in {model.sha256 for model in MODELS}
    assert card["license"]
    assert card["data"]["answers"] > 1000
    assert card["data"]["prompts_sha256"]
    greedy, sampled = card["measured"]
    assert (greedy["temperature"], sampled["temperature"]) == (0, 1)
    for measured in (greedy, sampled):
        assert measured["tau"] > 1.2
        assert len(measured["by_category"]) > 3
        assert measured["accepted_at_least"] == sorted(measured["accepted_at_least"], reverse=True)


@pytest.mark.parametrize("folder", shipped.folders(), ids=lambda folder: folder.name)
def test_its_weights_are_those_of_its_card(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_bytes())
    weights = read_drafter(folder)
    assert card["bytes"] == (folder / "model.safetensors").stat().st_size
    assert card["parameters"] == sum(tensor.size for tensor in weights.tensors.values())
    assert len(np.unique(weights.token_ids)) == weights.config.draft_vocab_size
    assert len(sha256_of(folder / "model.safetensors")) == 64


def test_a_drafter_is_found_by_its_target_and_by_no_other() -> None:
    assert shipped.folders(), "there is one"
    for folder in shipped.folders():
        info = target_of(folder)
        assert shipped.find(info) == folder
        for other in ({"name": "another"}, {"vocabulary": "another"}, {"layers": info.layers + 1}):
            assert shipped.find(replace(info, **other)) is None  # type: ignore[arg-type]
    assert shipped.find(TableTarget().info) is None


def test_auto_has_it_only_for_its_target() -> None:
    asked: list[str] = []

    def load_drafter(folder: str) -> object:
        asked.append(folder)
        raise InterruptedError

    info = target_of(shipped.folders()[0])
    load("auto", info, load_drafter=load_drafter, shipped=None)
    load("auto", info, load_drafter=None, shipped=shipped.find(info))
    assert not asked
    with pytest.raises(InterruptedError):
        load("auto", info, load_drafter=load_drafter, shipped=shipped.find(info))
    assert asked == [str(shipped.folders()[0])]
